// The second factor of who is signed in: setting it up, its recovery codes, turning it off; and proving who one is.

import { ANY_CODE, APP_CODE, button, element, formOf, PASSWORD } from "./elements.js";
import { openForm } from "./forms.js";
import { askSignedIn } from "./gateway.js";
import { faultOfCode, grouped } from "./words.js";

const PATH = "/auth/second-factor";

const leaving = new WeakMap();

/**
 * Asks in `place` for a password, and a code where `hasCode`. Gives what was written, null where it is left off, also
 * for something else that is asked there.
 */
export function askForProof(place, words, hasCode) {
  leaving.get(place)?.(null);
  return new Promise((resume) => {
    const give = (proof) => {
      place.replaceChildren();
      resume(proof);
    };
    leaving.set(place, give);
    const form = formOf(hasCode ? [PASSWORD, ANY_CODE] : [PASSWORD], "Go on", "One moment…", cancel(() => give(null)));
    place.replaceChildren(element("p", {}, words), form);
    openForm(form, {
      check: (values) => faultsOf(values),
      send: (values) => values,
      done: ({ password, code }) => give(hasCode ? { password, code } : { password }),
    });
    form.elements.namedItem("password").focus();
  });
}

/** The part of an account's section that is of the second factor. `changed` is called when it is another. */
export class SecondFactor {
  constructor(changed) {
    this.changed = changed;
    this.heading = element("h3", { tabindex: "-1" }, "Second factor");
    this.state = element("p", {});
    this.work = element("div", {});
    this.place = element("div", {}, this.heading, this.state, this.work);
  }

  /** Shows how it stands, of `GET /auth/me`. What is under way, such as codes that are shown once, stays. */
  show(told) {
    const { is_on: isOn, recovery_codes_left: left, must_be_set_up: isOwed } = told;
    this.state.textContent = isOn
      ? `On. ${left} recovery ${left === 1 ? "code is" : "codes are"} left.`
      : isOwed
        ? "You need one: nothing else is open to you before it is set up."
        : "Off: your password alone opens your account.";
    if (this.isUnderWay) return;
    const actions = isOn
      ? [button("New recovery codes", () => this.renew()), button("Turn it off", () => this.turnOff())]
      : [button("Set it up", () => this.begin())];
    this.work.replaceChildren(element("p", { class: "actions" }, ...actions));
  }

  /** Forgets what it showed: nobody is signed in any more. */
  clear() {
    this.isUnderWay = false;
    this.state.textContent = "";
    this.work.replaceChildren();
  }

  begin() {
    this.ask([PASSWORD], "Go on", "One moment…", {
      send: ({ password }) => askSignedIn("POST", PATH, { password }),
      done: (told) => this.confirm(told),
    });
  }

  confirm({ secret, uri }) {
    const link = element("a", { href: uri }, "Open it in the app on this device");
    this.ask([APP_CODE], "Turn it on", "Turning it on…", {
      before: [
        element("p", {}, "Add an account to your authenticator app by this key, then write the code that it shows."),
        element("p", {}, element("code", {}, grouped(secret))),
        element("p", {}, link),
      ],
      send: ({ code }) => askSignedIn("POST", `${PATH}/confirm`, { code }),
      done: (told) => this.showCodes(told.recovery_codes),
    });
  }

  renew() {
    this.ask([PASSWORD, ANY_CODE], "Make new ones", "One moment…", {
      send: (proof) => askSignedIn("POST", `${PATH}/recovery-codes`, proof),
      done: (told) => this.showCodes(told.recovery_codes),
    });
  }

  turnOff() {
    this.ask([PASSWORD, ANY_CODE], "Turn it off", "Turning it off…", {
      send: (proof) => askSignedIn("DELETE", PATH, proof),
      done: () => this.end(),
    });
  }

  /** Recovery codes, which are shown this once. */
  showCodes(codes) {
    const kept = button("I have kept them", () => this.end());
    this.work.replaceChildren(
      element("p", {}, "Keep these recovery codes where you find them without your app. Each opens your account once."),
      element("pre", {}, codes.join("\n")),
      element("p", { class: "actions" }, kept),
    );
    kept.focus();
  }

  ask(fields, words, busyWords, { before = [], send, done }) {
    this.isUnderWay = true;
    const form = formOf(fields, words, busyWords, cancel(() => this.end()));
    this.work.replaceChildren(...before, form);
    openForm(form, { check: (values) => faultsOf(values), send, done });
    form.querySelector("input").focus();
  }

  end() {
    this.isUnderWay = false;
    this.work.replaceChildren();
    this.heading.focus();
    return this.changed();
  }
}

function cancel(act) {
  return element("p", { class: "aside" }, button("Cancel", act));
}

function faultsOf({ password, code }) {
  return {
    password: password === "" ? "Write your password." : null,
    code: code === undefined ? null : faultOfCode(code),
  };
}
