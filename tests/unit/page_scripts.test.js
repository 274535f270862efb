// What the pages' scripts decide, run by node beside copies of them: see test_account_pages.py.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { ask, askProven, askSignedIn, Problem } from "./gateway.js";
import { faultOfCode, faultOfNewPassword, grouped, localAddress, programOf, sentence, tokenIn, wordsByField } from "./words.js";

const ORIGIN = "https://gateway.example.com";
let calls;
let answers;

/** `navigator.locks` as far as the scripts use it: one holder, the rest in their order. */
function oneLock() {
  let last = null;
  return {
    async request(_, options, act = options) {
      if (options.ifAvailable && last !== null) return act(null);
      const turn = Promise.resolve(last).then(() => act({}));
      const held = turn.catch(() => {});
      last = held;
      try {
        return await turn;
      } finally {
        if (last === held) last = null;
      }
    },
  };
}

function browser(parts) {
  Object.defineProperty(globalThis, "navigator", { value: parts, configurable: true });
}

function refused(status, code, message = "No.") {
  return [status, { error: { code, message, param: null } }];
}

beforeEach(() => {
  calls = [];
  answers = {};
  browser({ onLine: true, locks: oneLock() });
  globalThis.document = { cookie: "theme=dark; __Host-tidegate_signed_in=1" };
  globalThis.fetch = async (path, options) => {
    calls.push({ path, ...options });
    const [status, body] = answers[path].length > 1 ? answers[path].shift() : answers[path][0];
    await new Promise((resume) => setImmediate(resume));
    return new Response(body === null ? null : typeof body === "string" ? body : JSON.stringify(body), { status });
  };
});

const paths = () => calls.map(({ path }) => path);

test("after a sign-in nobody is led anywhere but to a path of this origin", () => {
  const led = { "/": "/", "/docs?a=1#b": "/docs?a=1#b", "/a/../b": "/b", "/sign-in": "/sign-in", "/@evil": "/@evil" };
  for (const [next, path] of Object.entries(led)) assert.equal(localAddress(next, ORIGIN), ORIGIN + path);
  const strange = [null, undefined, "", "docs", "//evil.example", "///evil.example", "/\\evil.example", "\\/evil"];
  strange.push("https://evil.example", `${ORIGIN}/docs`, "javascript:alert(1)", " /docs", "/\t/evil.example");
  strange.push("/\n/evil.example", "\t//evil.example", "/.//evil.example", "/a/..//evil.example", "/docs\\..\\x", "/do\tcs");
  for (const next of strange) assert.equal(localAddress(next, ORIGIN), null, JSON.stringify(next));
});

test("a token is read from the fragment", () => {
  assert.equal(tokenIn("#token=tgm_a-b_c"), "tgm_a-b_c");
  for (const fragment of ["", "#", "#token=", "#other=1"]) assert.equal(tokenIn(fragment), null);
});

test("a new password's characters are counted as the gateway counts them", () => {
  assert.equal(faultOfNewPassword("twelve chars"), null);
  assert.match(faultOfNewPassword("eleven char"), /^It has 11 characters/);
  assert.match(faultOfNewPassword("🦦".repeat(11)), /^It has 11 /);
  assert.equal(faultOfNewPassword("🦦".repeat(12)), null);
  assert.match(faultOfNewPassword("é".repeat(11)), /^It has 11 /);
  assert.match(faultOfNewPassword("x"), /^It has 1 character:/);
  assert.equal(faultOfNewPassword("x".repeat(1024)), null);
  assert.match(faultOfNewPassword("x".repeat(1025)), /at most 1024/);
  assert.ok(faultOfNewPassword(""));
});

test("faults go to the fields that are there, in the gateway's words", () => {
  const errors = [
    { loc: ["body", "password"], message: "this is guessed" },
    { loc: ["body", "password"], message: "a second one" },
    { loc: ["body", "token"], message: "too long" },
  ];
  assert.deepEqual([...wordsByField(errors, ["password"])], [["password", "This is guessed."]]);
  assert.equal(wordsByField(undefined, ["password"]).size, 0);
  assert.equal(sentence("Wait."), "Wait.");
});

test("programs have the names that people know", () => {
  const chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0 Safari/537.36";
  assert.equal(programOf(chrome), "Chrome on Linux");
  assert.equal(programOf(`${chrome} Edg/156.0`), "Edge on Linux");
  assert.equal(programOf("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18 Safari/604.1"), "Safari on iPhone");
  assert.equal(programOf("curl/8.5.0"), "curl");
  for (const none of [null, "", " "]) assert.equal(programOf(none), "Unknown program");
});

test("a call is the page's own, and holds no token", async () => {
  answers["/auth/me"] = [[200, { email: "ada@example.com" }]];
  assert.deepEqual(await ask("GET", "/auth/me"), { email: "ada@example.com" });
  const [{ headers, mode, cache, redirect }] = calls;
  assert.deepEqual([headers["X-Tidegate-CSRF"], headers.Authorization], ["1", undefined]);
  assert.deepEqual([mode, cache, redirect], [undefined, "no-store", "error"]);
});

test("an expired access token is renewed, and the call made again", async () => {
  for (const code of ["token_expired", "missing_credentials", "invalid_token"]) {
    calls = [];
    answers = { "/auth/me": [refused(401, code), [200, {}]], "/auth/page/refresh": [[200, {}]] };
    await askSignedIn("GET", "/auth/me");
    assert.deepEqual(paths(), ["/auth/me", "/auth/page/refresh", "/auth/me"]);
  }
});

test("calls that expire at once are one refresh", async () => {
  answers["/auth/page/refresh"] = [[200, {}]];
  const several = ["/auth/me", "/auth/sign-ins", "/api/keys"];
  for (const path of several) answers[path] = [refused(401, "token_expired"), [200, {}]];
  await Promise.all(several.map((path) => askSignedIn("GET", path)));
  assert.equal(paths().filter((path) => path === "/auth/page/refresh").length, 1);
});

test("where another tab has refreshed, the call goes on with what that got", async () => {
  browser({ onLine: true });
  answers = {
    "/auth/me": [refused(401, "token_expired"), [200, { email: "ada@example.com" }]],
    "/auth/page/refresh": [refused(409, "conflict")],
  };
  assert.deepEqual(await askSignedIn("GET", "/auth/me"), { email: "ada@example.com" });
});

test("who has no session here asks for no refresh, which would be a try of their address", async () => {
  answers = { "/auth/me": [refused(401, "missing_credentials")], "/auth/page/refresh": [[200, {}]] };
  for (const cookie of ["", "theme=dark", "tidegate_signed_in=", "not_tidegate_signed_in=1", "a=tidegate_signed_in=1"]) {
    calls = [];
    globalThis.document = { cookie };
    await assert.rejects(askSignedIn("GET", "/auth/me"), { isSignedOut: true });
    assert.deepEqual(paths(), ["/auth/me"], cookie);
  }
  globalThis.document = { cookie: "tidegate_signed_in=1; theme=dark" };
  await assert.rejects(askSignedIn("GET", "/auth/me"), { isSignedOut: true });
  assert.ok(paths().includes("/auth/page/refresh"));
});

test("a session that has ended elsewhere is not asked for again", async () => {
  answers = {
    "/auth/me": [refused(401, "missing_credentials")],
    "/auth/page/refresh": [refused(401, "missing_credentials", "This browser has no session here: sign in.")],
  };
  await assert.rejects(askSignedIn("GET", "/auth/me"), { isSignedOut: true, message: /no session here/ });
  assert.deepEqual(paths(), ["/auth/me", "/auth/page/refresh"]);
});

test("a token that is refused however new it is ends the tries", async () => {
  answers = { "/auth/me": [refused(401, "invalid_token")], "/auth/page/refresh": [[200, {}]] };
  await assert.rejects(askSignedIn("GET", "/auth/me"), { isSignedOut: true });
  assert.equal(paths().filter((path) => path === "/auth/page/refresh").length, 2);
});

test("a refresh that meets a limit is no sign-out", async () => {
  answers = {
    "/auth/me": [refused(401, "token_expired")],
    "/auth/page/refresh": [refused(429, "rate_limit_exceeded", "Too many tries. Try again in 9 s.")],
  };
  await assert.rejects(askSignedIn("GET", "/auth/me"), { isSignedOut: false, message: /in 9 s/ });
});

test("every failure has words for people", async () => {
  answers["/x"] = [[502, "<html>Bad gateway</html>"]];
  await assert.rejects(ask("GET", "/x"), { status: 502, message: /HTTP 502/ });
  answers["/x"] = [[200, "<html>A portal</html>"]];
  await assert.rejects(ask("GET", "/x"), Problem);
  answers["/x"] = [[204, null]];
  assert.equal(await ask("POST", "/x"), null);
  globalThis.fetch = async () => {
    throw new TypeError("Failed to fetch");
  };
  await assert.rejects(ask("GET", "/x"), { status: 0, message: /cannot be reached/ });
  browser({ onLine: false });
  await assert.rejects(ask("GET", "/x"), { message: /offline/ });
});

test("a proof is asked for where the gateway asks for one, and sent with the same call", async () => {
  const proof = { password: "correct horse battery", code: "123456" };
  const old = refused(403, "reauthentication_required");
  answers = { "/x": [old, [204, null]] };
  assert.equal(await askProven("DELETE", "/x", async () => proof), true);
  assert.deepEqual(calls.map(({ body }) => body && JSON.parse(body)), [undefined, proof]);
  // Who signed in of late is asked for none.
  answers = { "/x": [[204, null]] };
  assert.equal(await askProven("DELETE", "/x", () => assert.fail("asked")), true);
  // Who leaves it has nothing sent.
  calls = [];
  answers = { "/x": [old] };
  assert.equal(await askProven("DELETE", "/x", async () => null), false);
  assert.equal(calls.length, 1);
  // Another refusal, and a wrong proof, are said as they are, and no session is ended by them.
  answers = { "/x": [refused(403, "permission_denied")] };
  await assert.rejects(askProven("DELETE", "/x", () => assert.fail("asked")), { code: "permission_denied" });
  answers = { "/x": [old, refused(400, "invalid_request")] };
  await assert.rejects(askProven("DELETE", "/x", async () => proof), { status: 400, isSignedOut: false });
});

test("a key is shown in groups, and a code is asked for", () => {
  assert.equal(grouped("ABCDEFGHIJ"), "ABCD EFGH IJ");
  assert.equal(grouped("ABCDEFGH"), "ABCD EFGH");
  assert.ok(faultOfCode("  "));
  assert.equal(faultOfCode("123 456"), null);
});
