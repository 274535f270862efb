"""Items 3.1 to 3.5: who may call from where, what tokens are worth, and what holds off those who guess."""

from collections.abc import Sequence
from itertools import pairwise

from tidegate.check.structure import named, some
from tidegate.check.subject import Answer, Subject
from tidegate.check.verdicts import Check, Judged
from tidegate.settings.secrets import MINIMUM_BITS

EVIL_ORIGIN = "https://evil.example"
_LONGEST_TOKEN_S = 3600
_MOST_SKEW_S = 2.0
_DOCS = ("/docs", "/redoc", "/openapi.json")
_LIMITED = ("login", "refresh", "forgot", "reset")


def origins(subject: Subject) -> Judged:
    allowed = subject.one("http", "origins")
    if loose := [origin for origin in allowed if "*" in origin]:
        return "fail", f"TIDEGATE_HTTP__CORS_ORIGINS has {named(loose)}: name the exact origins"
    for name in ("cors_preflight_evil", "cors_get_evil"):
        answer = subject.seen[name]
        if answer.error is not None:
            return "unknown", f"{EVIL_ORIGIN} had no answer ({answer.error})"
        granted = answer.headers.get("access-control-allow-origin")
        if granted is not None:
            return "fail", f"a page of {EVIL_ORIGIN} is let in ({granted}): TIDEGATE_HTTP__CORS_ORIGINS names who may"
    if not allowed:
        return "pass", f"no origin may call; {EVIL_ORIGIN} was granted nothing, by preflight or by GET"
    granted = subject.seen["cors_preflight_own"].headers.get("access-control-allow-origin")
    if granted != allowed[0]:
        return "fail", f"{allowed[0]} is configured, but its preflight was granted {granted!r}"
    return "pass", f"{named(allowed)} may call; {EVIL_ORIGIN} was granted nothing, by preflight or by GET"


def keys(subject: Subject) -> Judged:
    ring = subject.one("tokens", "keys")
    for key in ring:
        if key["weakness"] is not None:
            return "fail", f"the key {key['kid']!r} {key['weakness']}: put a new one first (tidegate auth)"
        if key["bits"] < MINIMUM_BITS:
            told = f"the key {key['kid']!r} has at most {key['bits']} bits, fewer than {MINIMUM_BITS}"
            return "fail", f"{told}: openssl rand -hex 32 makes one"
    if not ring:
        return "fail", "there is no key"
    answer = subject.seen["forged_token"]
    if answer.error is not None:
        return "unknown", f"a forged token had no answer ({answer.error})"
    if answer.status != 401:
        return "fail", f"a token that nobody signed was answered {answer.status}"
    bits = min(key["bits"] for key in ring)
    algorithm = subject.one("tokens", "algorithm")
    told = f"{some(len(ring), 'key')} by kid, of at least {bits} bits for {algorithm}; an unsigned token got 401"
    if not subject.one("tokens", "are_from_settings"):
        return "partial", f"{told}; they were generated here: set TIDEGATE_AUTH__JWT_KEYS before production"
    return "pass", told


def expiry(subject: Subject) -> Judged:
    lifetime_s = subject.one("tokens", "access_token_s")
    if not 0 < lifetime_s <= _LONGEST_TOKEN_S:
        told = f"access tokens live {lifetime_s / 60:g} minutes, more than {_LONGEST_TOKEN_S // 60}"
        return "fail", f"{told}: TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES"
    skews = [
        (abs(facts["clock_ahead_s"]), f"{what}'s clock is {facts['clock_ahead_s']:g} s ahead of worker {pid}'s")
        for what in ("database", "redis")
        for pid, facts in subject.each(what)
        if "clock_ahead_s" in facts
    ]
    skew_s, told = max(skews, default=(0.0, ""))
    if skew_s > _MOST_SKEW_S:
        return "fail", f"the {told}, so that tokens end at another time: let NTP set both"
    clocks = f"; clocks of database and Redis within {skew_s:g} s of the workers'" if skews else ""
    return "pass", f"access tokens live {lifetime_s / 60:g} minutes; refresh tokens rotate on each use{clocks}"


def limiter(subject: Subject) -> Judged:
    limited = subject.one("routes", "limited")
    if bare := [name for name in _LIMITED if not limited.get(name, {}).get("address")]:
        return "fail", f"nothing counts the tries of {named(bare)}"
    workers = max(len(subject.workers), subject.root["workers_expected"] or 1)
    if workers > 1 and (fault := _not_shared(subject)) is not None:
        return fault
    for answer in subject.countdown:
        if answer.error is not None:
            return "unknown", f"a try had no answer ({answer.error})"
        if answer.status == 429:
            return "pass", f"tries from {subject.address} are over: refused with 429 and Retry-After"
    left = [remaining(answer) for answer in subject.countdown]
    shown = " ".join(map(str, left))
    if not counts_down(subject.countdown):
        return "fail", f"{len(left)} tries on as many connections did not count down: {shown}"
    of = f"{workers} workers by one Redis" if workers > 1 else "one worker"
    login = limited["login"]
    told = f"log-in {login['account']} by account and {login['address']} by address in 15 minutes, of {of}"
    return "pass", f"{told}; tries on {len(left)} connections counted down: {shown}"


def docs(subject: Subject) -> Judged:
    shown = subject.one("routes", "docs")
    answered = [
        path for path in _DOCS for name, seen in subject.seen.items() if _is_docs(name, path) and seen.status != 404
    ]
    if shown or answered:
        where = named(sorted({*shown, *answered}))
        return "fail", f"{where} is there: TIDEGATE_ENVIRONMENT is {subject.environment}; production has none"
    return "pass", f"{', '.join(_DOCS)} answered 404, and no route is of them"


def remaining(answer: Answer) -> int | None:
    """What a `RateLimit` header says is left; None without one."""
    _, found, rest = answer.headers.get("ratelimit", "").partition("r=")
    digits = rest.partition(";")[0]
    return int(digits) if found and digits.isdigit() else None


def counts_down(tries: Sequence[Answer]) -> bool:
    """Whether each left less than the one before."""
    left = [remaining(answer) for answer in tries]
    return bool(left) and None not in left and all(_is_less(after, before) for before, after in pairwise(left))


def _not_shared(subject: Subject) -> Judged | None:
    apart = [pid for pid, facts in subject.each("limiter") if not facts["shared"]]
    if apart:
        return "fail", f"worker {apart[0]} counts by itself: set TIDEGATE_REDIS__URL"
    away = [pid for pid, facts in subject.each("limiter") if facts["is_away"] or facts["run_id"] is None]
    if away:
        return "fail", f"worker {away[0]} has lost Redis and judges alone: see /health"
    if len(set(subject.every("limiter", "run_id"))) != 1:
        return "fail", "workers count in different Redis servers"
    policies = {facts.get("policy") for facts in subject.every("redis")}
    if policies == {None}:
        return None
    if policies != {"noeviction"}:
        evicting = ", ".join(sorted(str(policy) for policy in policies))
        return "fail", f"a full Redis throws limits away (maxmemory-policy {evicting}): set noeviction"
    return None


def _is_docs(name: str, path: str) -> bool:
    return name.startswith("docs") and name.endswith(path)


def _is_less(after: int | None, before: int | None) -> bool:
    return after is not None and before is not None and after < before


CHECKS = (
    Check("3.1", "CORS", origins),
    Check("3.2", "JWT keys", keys),
    Check("3.3", "JWT expiry", expiry),
    Check("3.4", "Rate limiting", limiter),
    Check("3.5", "Docs off in production", docs),
)
