// Making what a page shows, from text alone.

const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** An element with these attributes and children; text is text. */
export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A moment as this browser's people write it. */
export function momentOf(text) {
  return element("time", { datetime: text }, moments.format(new Date(text)));
}

/** A button that does one thing at a time; of an account, its problems are said there. */
export function button(words, act, account = null) {
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

/** A form for `openForm`: `fields` are each a name, its label, its kind and its purpose. */
export function formOf(fields, words, busyWords, ...beside) {
  const rows = fields.map(({ name, label, type, purpose, hint }) => {
    const id = `own-${name}`;
    const told = hint ? [element("p", { id: `${id}-hint`, class: "hint" }, hint)] : [];
    const described = [...told.map((each) => each.id), `${id}-fault`].join(" ");
    const field = { id, name, type, autocomplete: purpose, required: "", "aria-describedby": described };
    return element(
      "div",
      {},
      element("label", { for: id }, label),
      element("input", { ...field, autocapitalize: "none", spellcheck: "false" }),
      ...told,
      element("p", { id: `${id}-fault`, class: "fault" }),
    );
  });
  return element(
    "form",
    { method: "post", novalidate: "" },
    ...rows,
    element("p", { role: "alert", tabindex: "-1" }),
    element("button", { type: "submit", "data-busy": busyWords }, words),
    ...beside,
  );
}

export const PASSWORD = { name: "password", label: "Your password", type: "password", purpose: "current-password" };
export const APP_CODE = {
  name: "code",
  label: "Code",
  type: "text",
  purpose: "one-time-code",
  hint: "The 6 digits that your authenticator app shows.",
};
export const ANY_CODE = { ...APP_CODE, hint: "The 6 digits that your authenticator app shows, or a recovery code." };
