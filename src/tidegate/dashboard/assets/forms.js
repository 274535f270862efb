// Forms that a script sends: their faults are said where they are, and announced; one try at a time.

import { Problem } from "./gateway.js";
import { sentence, wordsByField } from "./words.js";

/**
 * Makes a form work. `check` returns what is wrong before anything is sent, by field; `send` asks the gateway;
 * `done` gets its answer; `failed` returns true for a `Problem` that it has shown itself.
 */
export function openForm(form, { check = () => ({}), send, done, failed = () => false }) {
  const button = form.querySelector("button[type=submit]");
  const words = { idle: button.textContent, busy: button.dataset.busy };
  const alert = form.querySelector("[role=alert]");
  let isBusy = false;

  const setBusy = (now) => {
    isBusy = now;
    form.setAttribute("aria-busy", String(now));
    // Not `disabled`: that would take the focus away.
    button.setAttribute("aria-disabled", String(now));
    button.textContent = now ? words.busy : words.idle;
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (isBusy) return;
    clear(form, alert);
    const values = Object.fromEntries([...fieldsOf(form)].map((field) => [field.name, field.value]));
    const faults = new Map(Object.entries(check(values)).filter(([, fault]) => fault));
    if (faults.size) return showFaults(form, faults);
    setBusy(true);
    try {
      await done(await send(values));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (!failed(problem)) showProblem(form, alert, problem);
    } finally {
      setBusy(false);
    }
  });
  for (const toggle of form.querySelectorAll("[data-shows]")) openToggle(form, toggle);
  button.disabled = false;
}

/** What is wrong with an e-mail address as it stands; the gateway is the judge of the rest. */
export function faultOfAddress(field) {
  if (!field.value.trim()) return "Write your e-mail address.";
  return field.validity.typeMismatch ? "Write a whole e-mail address, such as ada@example.com." : null;
}

/** Shows one part of the page, moves the focus to it, and hides the rest. */
export function showOnly(shown, parts) {
  for (const part of parts) part.hidden = part !== shown;
  const heading = shown.querySelector("h1, h2, [role=alert]");
  (heading ?? shown).focus();
}

/** Says while the browser is offline that it is. */
export function watchConnection(place) {
  const say = () => {
    place.textContent = navigator.onLine ? "" : "You are offline.";
  };
  addEventListener("online", say);
  addEventListener("offline", say);
  say();
}

function fieldsOf(form) {
  return form.querySelectorAll("input[name]");
}

function clear(form, alert) {
  alert.textContent = "";
  for (const field of fieldsOf(form)) {
    field.removeAttribute("aria-invalid");
    faultPlaceOf(form, field).textContent = "";
  }
}

function faultPlaceOf(form, field) {
  return form.querySelector(`#${field.id}-fault`);
}

function showFaults(form, faults) {
  let first = null;
  for (const field of fieldsOf(form)) {
    const fault = faults.get(field.name);
    if (!fault) continue;
    field.setAttribute("aria-invalid", "true");
    faultPlaceOf(form, field).textContent = fault;
    first ??= field;
  }
  first?.focus();
}

function showProblem(form, alert, problem) {
  const faults = wordsByField(
    problem.errors,
    [...fieldsOf(form)].map((field) => field.name),
  );
  if (faults.size) return showFaults(form, faults);
  alert.textContent = sentence(problem.message);
  alert.focus();
}

function openToggle(form, toggle) {
  const field = form.querySelector(`#${toggle.dataset.shows}`);
  const show = (isShown) => {
    field.type = isShown ? "text" : "password";
    toggle.textContent = isShown ? "Hide" : "Show";
    toggle.setAttribute("aria-label", `${toggle.textContent} the password`);
  };
  toggle.addEventListener("click", () => show(field.type === "password"));
  // Browsers keep what stands in a field of text.
  form.addEventListener("submit", () => show(false));
  toggle.disabled = false;
}
