"""Items 5.1 to 5.5: workers and their end, proxies, health, logs and request ids."""

import ipaddress

from tidegate.check.protection import remaining
from tidegate.check.structure import REFUSALS, named, some
from tidegate.check.subject import Subject
from tidegate.check.verdicts import Check, Judged

# Fewest bits of a network of proxies; a wider one trusts whole providers.
_WIDEST_NETWORK = {4: 8, 6: 16}
# Unique local addresses (RFC 4193).
_OWN_NETWORKS = ipaddress.IPv6Network("fc00::/7")
_HEALTH_WITHIN_S = 2.0
HOSTILE_ID = "x" * 200
OWN_ID = "tidegate-check.1"


def workers(subject: Subject) -> Judged:
    expected = subject.root["workers_expected"]
    current = [each for each in subject.root["workers"] if each["generation"] == subject.root["generation"]]
    ready = [each for each in current if each.get("state") == "ready"]
    if expected is None or len(ready) < expected:
        others = named([f"{each['pid']} {each.get('state')}" for each in current if each not in ready])
        return (
            "fail",
            f"{len(ready)} of {expected} workers are ready{f' ({others})' if others else ''}: look at the log",
        )
    drain_s, linger_s = subject.one("drain", "drain_s"), subject.one("drain", "linger_s")
    bound_s = subject.root["stop_within_s"]
    if bound_s is None or bound_s <= drain_s + linger_s:
        return "fail", f"it is killed after {bound_s} s, before its streams had their {drain_s:g} s to end"
    drain = f"streams have {drain_s:g} s to end, and a stop takes {bound_s:g} s at most"
    if all(pid == subject.root["pid"] for pid in subject.every("parent_pid")):
        return "partial", f"one process without an arbiter, as development has it; {drain}"
    asked = subject.one("workers_setting")
    how = f"2 x {subject.cpus} CPU + 1" if asked == "auto" and expected == 2 * subject.cpus + 1 else f"as set: {asked}"
    return "pass", f"{some(expected, 'worker')} under gunicorn ({how}), all ready; {drain}"


def proxies(subject: Subject) -> Judged:
    trusted = subject.one("http", "trusted_proxies")
    if wide := [each for each in trusted if _is_everyone(each)]:
        return "fail", f"TIDEGATE_HTTP__TRUSTED_PROXIES trusts everyone ({named(wide)}): name your proxies' addresses"
    shown = named(trusted) or "nobody"
    if any(_holds(each, subject.address) for each in trusted):
        return (
            "pass",
            f"trusted: {shown}; {subject.address} is one of them, so that a forged header cannot be tried from here",
        )
    forged = subject.seen["forged_address"]
    if forged.error is not None:
        return "unknown", f"a forged X-Forwarded-For had no answer ({forged.error})"
    left, before = remaining(forged), [remaining(answer) for answer in subject.countdown]
    known = [each for each in before if each is not None]
    if forged.status == 429 or not known:
        return (
            "unknown",
            "tries are over here, so that a forged X-Forwarded-For cannot be told apart: ask in 15 minutes",
        )
    if left is None or left >= min(known):
        return "fail", f"X-Forwarded-For from {subject.address} is believed, which is no trusted proxy"
    return "pass", f"trusted: {shown}; a forged X-Forwarded-For from {subject.address} was not believed"


def health(subject: Subject) -> Judged:
    for name in ("/health", "/health/live", "/health/ready"):
        answer = subject.seen[f"health {name}"]
        if answer.status != 200:
            told = answer.body.get("checks", {}) if isinstance(answer.body, dict) else {}
            down = [each for each, result in told.items() if result.get("status") != "ok"]
            return "fail", f"{name} answered {answer.told}{f', down: {named(down)}' if down else ''}"
        if answer.took_s > _HEALTH_WITHIN_S:
            return "fail", f"{name} took {answer.took_s:.1f} s, longer than a probe waits"
    report = subject.seen["health /health"].body
    checks = report["checks"]
    if not {"database", "cache"} <= checks.keys():
        return "fail", "/health does not ask database and cache"
    if report["degraded"]:
        return "partial", f"200, but degraded: {named(report['degraded'])}"
    shown = ", ".join(f"{name} ok in {result['latency_ms']:g} ms" for name, result in checks.items())
    return "pass", f"/health, /live and /ready answered 200; {shown}"


def logs(subject: Subject) -> Judged:
    for pid, facts in subject.each("logs"):
        if facts["form"] == "console":
            return "fail", f"worker {pid} writes for a terminal: production, or a pipe, has one JSON object a line"
        if facts["form"] != "json":
            return "fail", f"worker {pid} writes lines that are no JSON objects"
        if not facts["redacts"]:
            return "fail", f"worker {pid} would write an API key into its log"
        if facts["loggers_with_their_own"] or facts["handlers"] != 1:
            others = named(facts["loggers_with_their_own"]) or f"{facts['handlers']} handlers at the root"
            return "fail", f"worker {pid} has lines that go elsewhere: {others}"
    among = some(len(subject.workers), "worker")
    return "pass", f"a line of uvicorn's came out as JSON on stdout, its secret taken out, in {among}"


def request_ids(subject: Subject) -> Judged:
    own, made, replaced = (subject.seen[f"id {name}"] for name in ("own", "none", "hostile"))
    for answer in (own, made, replaced):
        if answer.error is not None:
            return "unknown", f"no answer ({answer.error})"
    if own.headers.get("x-request-id") != OWN_ID:
        return "fail", f"X-Request-ID {OWN_ID!r} came back as {own.headers.get('x-request-id')!r}"
    if not made.headers.get("x-request-id"):
        return "fail", "an answer to a request without an id has none"
    if replaced.headers.get("x-request-id") in (HOSTILE_ID, None, ""):
        return "fail", "an id of 200 characters was taken over"
    errors = [subject.seen[name] for name in REFUSALS]
    if nameless := [each for each in errors if not isinstance(each.body, dict) or not each.body.get("request_id")]:
        return "fail", f"an error without a request id: {nameless[0].told}"
    rows = [row for facts in subject.every("ledger") for row in facts.get("latest", ())]
    if any(not row["request_id"] for row in rows):
        return "fail", "an entry of the ledger has no request id"
    if subject.live is not None and subject.live.problem is None and not subject.live.entries:
        return "fail", f"no entry of the ledger bears the id {subject.live.hung_up_id!r} of a request that was made"
    kept = f", in the {len(rows)} newest entries" if rows else ""
    if subject.live is not None and subject.live.entries:
        kept = ", in the entry of the stream that hung up"
    return "pass", f"kept, made where there was none, replaced where hostile; in {len(errors)} errors{kept}"


def _is_everyone(proxy: str) -> bool:
    if proxy == "*":
        return True
    network = ipaddress.ip_network(proxy, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_OWN_NETWORKS):
        return False
    return network.prefixlen < _WIDEST_NETWORK[network.version]


def _holds(proxy: str, address: str) -> bool:
    return proxy != "*" and ipaddress.ip_address(address) in ipaddress.ip_network(proxy, strict=False)


CHECKS = (
    Check("5.1", "Workers", workers),
    Check("5.2", "Proxy headers", proxies),
    Check("5.3", "Health", health),
    Check("5.4", "JSON logs", logs),
    Check("5.5", "Request ids", request_ids),
)
