// Calls to this gateway by the page's session: its tokens are in cookies that no script reads.

const LOCK = "tidegate-refresh";
const LONGEST_MS = 30_000;
const AFTER_ANOTHER_TAB_MS = 300;
const REFRESHES_AT_MOST = 2;
// It is set and cleared with the cookies of a session, which no script reads, and says nothing else.
const MARK_OF_A_SESSION = /(?:^|; )(?:__Host-)?tidegate_signed_in=1(?:;|$)/;

/** A call that failed. `message` is for people: the gateway's own words, where it answered. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null, param = null, errors = [] } = {}) {
    super(message);
    this.name = "Problem";
    Object.assign(this, { status, code, param, errors });
  }

  /** Nobody is signed in here. */
  get isSignedOut() {
    return this.status === 401;
  }
}

/** What the gateway answers, null where it answers nothing. Throws a `Problem`. */
export async function ask(method, path, body) {
  // Not `mode: "same-origin"`: with that, and no referrer, a browser sends `Origin: null`.
  const headers = { Accept: "application/json", "X-Tidegate-CSRF": "1" };
  const given = { method, headers, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(LONGEST_MS) };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    given.body = JSON.stringify(body);
  }
  let answer;
  let text;
  try {
    answer = await fetch(path, given);
    text = await answer.text();
  } catch (failure) {
    throw new Problem(unreachable(failure));
  }
  if (!answer.ok) throw problemOf(answer.status, text);
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    throw problemOf(answer.status, text);
  }
}

/**
 * The same for who is signed in: what an expired access token is refused is asked again with a new one. Where this
 * browser has no session there is none to be had, and none is asked for.
 */
export async function askSignedIn(method, path, body) {
  for (let refreshes = 0; ; refreshes += 1) {
    try {
      return await ask(method, path, body);
    } catch (problem) {
      if (problem.status !== 401 || refreshes === REFRESHES_AT_MOST || !hasSession()) throw problem;
    }
    await refresh();
  }
}

/**
 * The same for what takes a sign-in of late or a proof: where the gateway asks for one, `prove` gives it, and the call
 * is made again with it. False where `prove` gives null.
 */
export async function askProven(method, path, prove) {
  try {
    await askSignedIn(method, path);
  } catch (problem) {
    if (problem.code !== "reauthentication_required") throw problem;
    const proof = await prove();
    if (proof === null) return false;
    await askSignedIn(method, path, proof);
  }
  return true;
}

function hasSession() {
  return MARK_OF_A_SESSION.test(document.cookie);
}

/** New cookies, asked for by one tab at a time. Throws a `Problem`: `isSignedOut` where there is no session. */
async function refresh() {
  // Web Locks are there in secure contexts alone; without them the gateway's 409 keeps tabs apart.
  if (!navigator.locks) return refreshHere();
  const isDone = await navigator.locks.request(LOCK, { ifAvailable: true }, async (lock) => {
    if (lock) await refreshHere();
    return lock !== null;
  });
  // Another tab is at it, and its cookies are this one's too.
  if (!isDone) await navigator.locks.request(LOCK, () => undefined);
}

async function refreshHere() {
  try {
    await ask("POST", "/auth/page/refresh");
  } catch (problem) {
    if (problem.status !== 409) throw problem;
    await new Promise((resume) => setTimeout(resume, AFTER_ANOTHER_TAB_MS));
  }
}

function problemOf(status, text) {
  try {
    const { code, message, param, errors } = JSON.parse(text).error;
    if (typeof message === "string" && message) return new Problem(message, { status, code, param, errors });
  } catch {
    // Not the gateway's: something before it answered.
  }
  return new Problem(`The gateway could not be asked (HTTP ${status}). Try again in a moment.`, { status });
}

function unreachable(failure) {
  if (navigator.onLine === false) return "You are offline. Nothing was sent: try again when you are back.";
  if (failure?.name === "TimeoutError") return "The gateway did not answer in time. Try again in a moment.";
  return "The gateway cannot be reached. Try again in a moment.";
}
