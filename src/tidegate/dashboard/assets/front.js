// Who is signed in, on the page at `/`.

import { openAccount } from "./account.js";
import { watchConnection } from "./forms.js";

const who = document.getElementById("who");
const link = who.querySelector("a");
const account = document.getElementById("account");

watchConnection(document.getElementById("connection"));
openAccount(account, {
  onKnown: (me) => {
    link.textContent = me === null ? "Sign in" : me.email;
    link.href = me === null ? "/sign-in?next=/" : "#account";
    who.classList.remove("pending");
    account.hidden = me === null;
  },
  onUnknown: () => {
    who.classList.remove("pending");
    account.hidden = false;
  },
});
