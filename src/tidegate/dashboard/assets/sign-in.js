// Signs the page in by a password, or leads to single sign-on; shows who is signed in already.

import { openAccount, tellOtherTabs } from "./account.js";
import { ask } from "./gateway.js";
import { faultOfAddress, openForm, watchConnection } from "./forms.js";
import { faultOfCode, localAddress } from "./words.js";

const next = localAddress(new URLSearchParams(location.search).get("next"), location.origin);
const goal = new URL(next ?? document.body.dataset.home, location.origin);
const [todo, account] = ["todo", "signed-in"].map((id) => document.getElementById(id));
const form = todo.querySelector("form");
const email = form.elements.namedItem("email");
const password = form.elements.namedItem("password");
const code = form.elements.namedItem("code");
const secondFactor = document.getElementById("second-factor");
let hasBegunToWrite = false;

watchConnection(document.getElementById("connection"));
form.addEventListener("keydown", () => {
  hasBegunToWrite = true;
});
openForm(form, {
  check: (values) => ({
    email: faultOfAddress(email),
    password: values.password ? null : "Write your password.",
    code: secondFactor.hidden ? null : faultOfCode(values.code),
  }),
  send: (values) =>
    ask("POST", "/auth/page/login", {
      email: values.email.trim(),
      password: values.password,
      ...(secondFactor.hidden ? {} : { code: values.code.trim() }),
    }),
  done: () => {
    form.reset();
    tellOtherTabs();
    if (goal.pathname === location.pathname) location.reload();
    else location.replace(goal.href);
    // Until the other page is there, nothing is sent again.
    return new Promise(() => {});
  },
  failed: (problem) => {
    if (problem.code === "second_factor_required") {
      secondFactor.hidden = false;
      code.focus();
      return true;
    }
    // Which of them is wrong is not told: a code may be late, and a password need not be written again for that.
    if (problem.isSignedOut && secondFactor.hidden) password.value = "";
    code.value = "";
    return false;
  },
});
openAccount(account, {
  onKnown: (me) => {
    // Who writes here already is signing in as somebody else.
    const isShown = me !== null && !hasBegunToWrite;
    todo.hidden = isShown;
    account.hidden = !isShown;
    document.title = isShown ? "Your account · Tidegate" : "Sign in · Tidegate";
  },
});
const onward = document.getElementById("onward");
if (goal.pathname !== location.pathname) {
  onward.querySelector("a").href = goal.href;
  onward.hidden = false;
}
await offerSingleSignOn();

async function offerSingleSignOn() {
  const offer = document.getElementById("single-sign-on");
  try {
    const { enabled, label, password_log_in: takesPasswords } = await ask("GET", "/auth/sso");
    if (!enabled) return;
    form.hidden = document.getElementById("forgot").hidden = !takesPasswords;
    const link = offer.querySelector("a");
    link.textContent = `Sign in with ${label}`;
    link.href = `/auth/sso/login?next=${encodeURIComponent(goal.pathname + goal.search + goal.hash)}`;
    offer.hidden = false;
  } catch {
    // The form of the password stands as it is.
  }
}
