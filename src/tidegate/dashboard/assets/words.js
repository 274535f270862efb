// What needs neither a page nor a network: reading addresses, tokens, errors and programs' names.

/** The address behind `next` where it is one of this origin, null where it is not or there is none. */
export function localAddress(next, origin) {
  // A browser drops tabs and line breaks from an address, and reads a backslash as a slash.
  if (typeof next !== "string" || !/^\/(?![/\\])[^\\\u0000-\u001f\u007f]*$/.test(next)) return null;
  try {
    const address = new URL(next, origin);
    return address.origin === origin && !address.pathname.startsWith("//") ? address.href : null;
  } catch {
    return null;
  }
}

/** The token in an address's fragment, null where there is none. */
export function tokenIn(fragment) {
  return new URLSearchParams(fragment.replace(/^#/, "")).get("token") || null;
}

/** What is wrong with a new password as it stands, null where only the gateway can tell. It counts as the gateway does. */
export function faultOfNewPassword(password) {
  const length = [...password.normalize("NFC")].length;
  if (length === 0) return "Choose a password.";
  if (length < 12) return `It has ${length} ${length === 1 ? "character" : "characters"}: at least 12 are needed.`;
  if (length > 1024) return `It has ${length} characters: at most 1024 are taken.`;
  return null;
}

/** What is wrong with a code as it stands; the gateway is the judge of the rest. */
export function faultOfCode(code) {
  return code.trim() ? null : "Write the code.";
}

/** A long text in groups of four, as people copy it. */
export function grouped(text) {
  return text.replace(/.{4}(?=.)/g, "$& ");
}

/** An error's own words by the fields that they are about: `fields` has those with a place of their own. */
export function wordsByField(errors, fields) {
  const found = new Map();
  for (const { loc, message } of errors ?? []) {
    const field = loc?.at(-1);
    if (fields.includes(field) && !found.has(field)) found.set(field, sentence(message));
  }
  return found;
}

/** Words as a sentence. */
export function sentence(words) {
  const text = String(words).trim();
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

const PROGRAMS = [
  [/\bEdg(?:e|A|iOS)?\//, "Edge"],
  [/\bOPR\//, "Opera"],
  [/\bSamsungBrowser\//, "Samsung Internet"],
  [/\b(?:Firefox|FxiOS)\//, "Firefox"],
  [/(?:Chrome|CriOS|Chromium)\//, "Chrome"],
  [/\bSafari\//, "Safari"],
];
const SYSTEMS = [
  [/\b(?:iPhone|iPod)\b/, "iPhone"],
  [/\biPad\b/, "iPad"],
  [/\bAndroid\b/, "Android"],
  [/\bWindows\b/, "Windows"],
  [/\bMac OS X\b|\bMacintosh\b/, "macOS"],
  [/\bCrOS\b/, "ChromeOS"],
  [/\bLinux\b/, "Linux"],
];

/** What people call the program of a User-Agent header. */
export function programOf(userAgent) {
  if (!userAgent) return "Unknown program";
  const named = (table) => table.find(([pattern]) => pattern.test(userAgent))?.[1];
  const program = named(PROGRAMS) ?? userAgent.split(/[\s/(;]/, 1)[0].slice(0, 40);
  const system = named(SYSTEMS);
  return system && program ? `${program} on ${system}` : program || "Unknown program";
}
