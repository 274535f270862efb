// A page that a link in an e-mail leads to. Its token stands in the fragment, which no browser sends to anybody.

import { ask } from "./gateway.js";
import { openForm, showOnly, watchConnection } from "./forms.js";
import { faultOfNewPassword, sentence, tokenIn, wordsByField } from "./words.js";

const token = tokenIn(location.hash);
// Out of the address before anything else: no bookmark, screenshot or way back has it.
history.replaceState(null, "", location.pathname);
// The link once more, in this tab: a new fragment alone loads nothing.
addEventListener("hashchange", () => location.reload());

const parts = [...document.querySelectorAll("main > section")];
const [todo, done, refused] = ["todo", "done", "refused"].map((id) => document.getElementById(id));
const form = todo.querySelector("form");

watchConnection(document.getElementById("connection"));
openForm(form, {
  check: ({ password }) => (password === undefined ? {} : { password: faultOfNewPassword(password) }),
  send: (values) => ask("POST", form.dataset.path, { token, ...values }),
  done: (answer) => {
    form.reset();
    const email = done.querySelector("[data-email]");
    if (email) email.textContent = answer.email;
    showOnly(done, parts);
  },
  failed: (problem) => {
    const isOfToken = problem.param === "token" || wordsByField(problem.errors, ["token"]).size > 0;
    if (!isOfToken && problem.status !== 409) return false;
    refuse(sentence(problem.message));
    return true;
  },
});
if (token === null) refuse("There is no token in this address. Open the link of your e-mail once more, the whole of it.");

function refuse(words) {
  form.reset();
  refused.querySelector("[data-words]").textContent = words;
  showOnly(refused, parts);
}
