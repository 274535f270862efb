// The signed-in person's own section of a page: who they are, signing out, their second factor, and their sign-ins.

import { button, element, momentOf } from "./elements.js";
import { ask, askProven, askSignedIn, Problem } from "./gateway.js";
import { askForProof, SecondFactor } from "./second-factor.js";
import { programOf, sentence } from "./words.js";

const METHODS = { password: "password", single_sign_on: "single sign-on" };
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
    this.signIns = element("div", {}, this.heading, this.list);
    this.proof = element("div", {});
    this.secondFactor = new SecondFactor(() => this.show());
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
      this.proof,
      this.secondFactor.place,
      this.signIns,
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
      // Another tab may have signed in as somebody else, whom codes that are shown here are none of.
      if (this.shownTo !== me.email) this.secondFactor.clear();
      this.shownTo = me.email;
      this.hasSecondFactor = me.second_factor.is_on;
      this.secondFactor.show(me.second_factor);
      this.onKnown(me);
      this.known.hidden = false;
      this.signIns.hidden = me.second_factor.must_be_set_up;
      if (!this.signIns.hidden) await this.showSignIns();
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
    if (!(await this.askProven("DELETE", `/auth/sign-ins/${encodeURIComponent(id)}`))) return;
    await this.showSignIns();
    this.said.textContent = `The sign-in of ${program} has ended.`;
    // Its button is gone, and the focus with it.
    this.heading.focus();
  }

  async signOutEverywhere() {
    if (await this.askProven("POST", "/auth/logout/everywhere")) await this.signOut();
  }

  /** Whether it was done: who is asked to prove who they are may leave it. */
  askProven(method, path) {
    const words = "You signed in a while ago: write your password again for this.";
    return askProven(method, path, () => askForProof(this.proof, words, this.hasSecondFactor));
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
      this.proof.replaceChildren();
      this.secondFactor.clear();
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
