// Asks for a link to a new password. The gateway's answer is the same whether or not there is such an account.

import { ask } from "./gateway.js";
import { faultOfAddress, openForm, showOnly, watchConnection } from "./forms.js";

const parts = [...document.querySelectorAll("main > section")];
const [todo, done] = ["todo", "done"].map((id) => document.getElementById(id));
const form = todo.querySelector("form");
const email = form.elements.namedItem("email");

watchConnection(document.getElementById("connection"));
openForm(form, {
  check: () => ({ email: faultOfAddress(email) }),
  send: (values) => ask("POST", "/auth/password/forgot", { email: values.email.trim() }),
  done: () => {
    done.querySelector("[data-email]").textContent = email.value.trim();
    showOnly(done, parts);
  },
});
document.getElementById("again").addEventListener("click", () => {
  showOnly(todo, parts);
  email.focus();
});
