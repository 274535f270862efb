// The signed-in person's own section of a page: who they are, signing out, and their sign-ins.

import { ask, askSignedIn, Problem } from "./gateway.js";
import { programOf, sentence } from "./words.js";

const METHODS = { password: "password", single_sign_on: "single sign-on" };
const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
// Who is signed in is one answer for all tabs of a browser.
const otherTabs = new BroadcastChannel("tidegate-session");

/** Tells this browser's other tabs that somebody signed in or out. */
export function tellOtherTabs() {
  otherTabs.postMessage("changed");
}

/**
 * Fills a section, now and whenever another tab signs in or out. `onKnown` gets who is signed in, null for nobody;
 * `onUnknown` is called where the gateway cannot be asked.
 */
export function openAccount(place, { onKnown, onUnknown = () => {} }) {
  const account = new Account(place, onKnown, onUnknown);
  otherTabs.addEventListener("message", () => account.show());
  // A page that a browser kept for the way back shows whoever was signed in then.
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  return account.show();
}

class Account {
  constructor(place, onKnown, onUnknown) {
    this.onKnown = onKnown;
    this.onUnknown = onUnknown;
    this.who = element("p", { class: "who" });
    this.said = element("p", { role: "status" });
    this.faultWords = element("p", { role: "alert" });
    this.again = button("Try again", () => this.show());
    this.fault = element("div", { class: "refusal" }, this.faultWords, this.again);
    this.heading = element("h3", { tabindex: "-1" }, "Sign-ins");
    this.list = element("ul", { class: "rows" });
    this.known = element(
      "div",
      {},
      this.who,
      element(
        "p",
        { class: "actions" },
        button("Sign out", () => this.signOut(), this),
        button("Sign out everywhere", () => this.signOutEverywhere(), this),
      ),
      this.heading,
      this.list,
    );
    this.known.hidden = this.fault.hidden = true;
    place.append(this.said, this.fault, this.known);
  }

  async show() {
    this.fault.hidden = true;
    try {
      const me = await askSignedIn("GET", "/auth/me");
      this.who.replaceChildren(
        ...["Signed in as ", element("b", {}, me.email), `, ${me.role} in the workspace `, element("b", {}, me.workspace)],
      );
      if (me.password_ends_at) {
        const link = element("a", { href: "/forgot-password" }, "Have a link sent");
        const words = ". Your password was one to begin with: choose your own before ";
        this.who.append(words, momentOf(me.password_ends_at), ". ", link, ".");
      }
      this.onKnown(me);
      this.known.hidden = false;
      await this.showSignIns();
    } catch (problem) {
      this.showProblem(problem);
    }
  }

  async showSignIns() {
    this.list.setAttribute("aria-busy", "true");
    if (!this.list.children.length) this.list.append(element("li", {}, "Loading…"));
    let rows = [];
    try {
      const { data } = await askSignedIn("GET", "/auth/sign-ins");
      rows = data.map((signIn) => this.rowOf(signIn));
    } finally {
      this.list.replaceChildren(...rows);
      this.list.setAttribute("aria-busy", "false");
    }
  }

  rowOf(signIn) {
    const program = programOf(signIn.user_agent);
    const where = `${signIn.client_address ?? "address unknown"}, by ${METHODS[signIn.method] ?? signIn.method}`;
    const times = element("small", {}, "Since ", momentOf(signIn.created_at));
    if (signIn.last_used_at) times.append(", last refreshed ", momentOf(signIn.last_used_at));
    const name = element("b", { title: signIn.user_agent ?? "" }, program);
    const told = element("div", {}, name, element("small", {}, where), times);
    if (signIn.is_current) {
      name.after(" ", element("em", {}, "this one"));
      return element("li", {}, told);
    }
    const end = button("End", () => this.end(signIn.id, program), this);
    end.setAttribute("aria-label", `End the sign-in of ${program} from ${where}`);
    return element("li", {}, told, end);
  }

  async end(id, program) {
    await askSignedIn("DELETE", `/auth/sign-ins/${encodeURIComponent(id)}`);
    await this.showSignIns();
    this.said.textContent = `The sign-in of ${program} has ended.`;
    // Its button is gone, and the focus with it.
    this.heading.focus();
  }

  async signOutEverywhere() {
    await askSignedIn("POST", "/auth/logout/everywhere");
    await this.signOut();
  }

  async signOut() {
    await ask("POST", "/auth/page/logout");
    tellOtherTabs();
    // All that this page holds goes with it.
    location.replace("/sign-in");
  }

  /** Does what a button is for, and says what went wrong. */
  async attempt(act) {
    this.fault.hidden = true;
    this.said.textContent = "";
    try {
      await act();
    } catch (problem) {
      this.showProblem(problem);
    }
  }

  showProblem(problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.isSignedOut) {
      this.known.hidden = true;
      this.who.replaceChildren();
      this.list.replaceChildren();
      this.onKnown(null);
      return;
    }
    this.faultWords.textContent = sentence(problem.message);
    // A button that failed is there to be pressed again.
    this.again.hidden = this.list.children.length > 0;
    this.fault.hidden = false;
    if (this.known.hidden) this.onUnknown();
  }
}

/** A button that does one thing at a time; of an account, its problems are said there. */
function button(words, act, account = null) {
  const made = element("button", { type: "button" }, words);
  made.addEventListener("click", async () => {
    if (made.getAttribute("aria-disabled") === "true") return;
    made.setAttribute("aria-disabled", "true");
    try {
      await (account ? account.attempt(act) : act());
    } finally {
      made.setAttribute("aria-disabled", "false");
    }
  });
  return made;
}

function momentOf(text) {
  return element("time", { datetime: text }, moments.format(new Date(text)));
}

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
