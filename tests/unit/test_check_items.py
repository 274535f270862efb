"""Every one of the 25 items, broken: it is named, it alone, with evidence that says what is wrong."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.checked import CUT, ROOT_PID, ROW, Broken, answered, live, nothing_wrong, refused
from tidegate.check.items import SECTIONS, findings
from tidegate.check.running import HOSTILE_ID
from tidegate.check.subject import Answer
from tidegate.check.verdicts import Finding, Verdict

Break = Callable[[Broken], object]


def of(item: str, found: list[Finding]) -> Finding:
    return next(finding for finding in found if finding.id == item)


def fact(group: str, name: str, value: Any) -> Break:
    """The same in every worker."""

    def change(server: Broken) -> None:
        server.everywhere(lambda worker: worker[group].update({name: value}))

    return change


def one_worker(group: str, name: str, value: Any) -> Break:
    return lambda server: server.worker[group].update({name: value})


def seen(name: str, answer: Answer) -> Break:
    return lambda server: server.seen.update({name: answer})


def root(name: str, value: Any) -> Break:
    return lambda server: server.root.update({name: value})


def also(**given: Any) -> Break:
    return lambda server: server.others.update(given)


def upstream(name: str, value: Any) -> Break:
    return lambda server: server.everywhere(lambda worker: worker["upstreams"]["one"].update({name: value}))


def timeouts(**given: Any) -> Break:
    return lambda server: server.everywhere(lambda worker: worker["upstreams"]["one"]["timeouts"].update(given))


def ledger(*rows: dict[str, Any]) -> Break:
    return fact("ledger", "latest", list(rows))


def countdown(*left: int | None) -> Break:
    def change(server: Broken) -> None:
        server.countdown = [
            answered(204) if one is None else answered(204, ratelimit=f'"logout-address";r={one};t=900') for one in left
        ]

    return change


def key(**given: Any) -> Break:
    return fact("tokens", "keys", [{"kid": "old", "bits": 256, "weakness": None} | given])


SILENT = Answer(error="ConnectError")
EVIL = {"access_control_allow_origin": "https://evil.example"}
DOWN = {"checks": {"database": {"status": "down"}, "cache": {"status": "ok"}}}
DEGRADED = {"degraded": ["ledger"], "checks": {"database": {"status": "ok"}, "cache": {"status": "ok"}}}

CASES: list[tuple[str, Verdict, Break, str]] = [
    ("1.1", "fail", fact("routes", "loose", ["GET /loose"]), "GET /loose"),
    ("1.1", "fail", fact("routes", "routers", 0), "no router"),
    ("1.2", "fail", fact("settings", "is_frozen", False), "frozen"),
    ("1.2", "fail", also(strays=("upstream/x.py",)), "upstream/x.py"),
    ("1.2", "partial", fact("settings", "unknown", ["TIDEGATE_WORKER"]), "TIDEGATE_WORKER"),
    ("1.2", "fail", one_worker("settings", "digests", {"auth": "other"}), "workers differ in settings: 101, 103"),
    ("1.3", "fail", fact("routes", "handlers", ["HTTPException"]), "RequestValidationError"),
    ("1.3", "fail", seen("not_found", answered(404, {"detail": "Not Found"})), "404 was to be 'not_found'"),
    ("1.3", "fail", seen("too_large", refused(500, "internal_error")), "413"),
    ("1.3", "unknown", seen("too_large", SILENT), "ConnectError"),
    ("1.4", "fail", fact("routes", "without_caller", ["GET /api/keys"]), "GET /api/keys"),
    ("1.4", "fail", fact("routes", "overridden", ["get_caller"]), "get_caller"),
    ("1.5", "fail", fact("routes", "unconstrained", ["POST /api/keys: body.name (text of any length)"]), "body.name"),
    ("1.5", "fail", seen("out_of_range_number", refused(500, "internal_error")), "out_of_range_number"),
    ("2.1", "fail", fact("database", "driver", "psycopg2"), "psycopg2"),
    ("2.2", "fail", fact("database", "max_connections", 60), "1 replicas x 3 workers x (5 + 5) x 2 = 60 of 60"),
    ("2.2", "fail", fact("database", "max_replicas", 2), "= 120"),
    ("2.2", "partial", fact("database", "pooler", "transaction"), "max_client_conn"),
    ("2.3", "fail", fact("database", "missing", ["0006"]), "behind by 0006: run tidegate migrate"),
    ("2.3", "partial", fact("database", "newer", "0099"), "0099"),
    ("2.4", "fail", one_worker("loop", "worst_ms", 2100.0), "worker 103 was 2100 ms late"),
    ("2.4", "fail", also(silent=(104,)), "worker 104 did not answer"),
    ("2.4", "partial", fact("loop", "stall_log_s", 0), "STALL_LOG_S"),
    ("2.5", "fail", fact("redis", "configured", False), "TIDEGATE_REDIS__URL"),
    ("2.5", "fail", one_worker("redis", "run_id", "r2"), "2 different Redis"),
    ("2.5", "fail", one_worker("redis", "error", "ConnectionError"), "worker 103 cannot use the redis"),
    ("2.5", "fail", fact("caches", "answers_in_redis", False), "answers_in_redis"),
    ("3.1", "fail", fact("http", "origins", ["*"]), "exact origins"),
    ("3.1", "fail", seen("cors_preflight_evil", answered(200, None, **EVIL)), "evil.example is let in"),
    ("3.1", "fail", seen("cors_get_evil", answered(200, None, **EVIL)), "evil.example is let in"),
    ("3.1", "fail", seen("cors_preflight_own", refused(400, "invalid_request")), "app.example.com"),
    ("3.2", "fail", key(bits=192), "at most 192 bits"),
    ("3.2", "fail", key(weakness="is a placeholder (changeme)"), "'old' is a placeholder"),
    ("3.2", "fail", seen("forged_token", answered(200)), "was answered 200"),
    ("3.2", "partial", fact("tokens", "are_from_settings", False), "TIDEGATE_AUTH__JWT_KEYS"),
    ("3.3", "fail", fact("tokens", "access_token_s", 86400), "1440 minutes"),
    ("3.3", "fail", one_worker("database", "clock_ahead_s", -7.5), "database's clock is -7.5 s ahead of worker 103's"),
    ("3.4", "fail", one_worker("limiter", "shared", False), "worker 103 counts by itself"),
    ("3.4", "fail", one_worker("limiter", "is_away", True), "worker 103 has lost Redis"),
    ("3.4", "fail", one_worker("limiter", "run_id", "r2"), "different Redis"),
    ("3.4", "fail", fact("redis", "policy", "allkeys-lru"), "allkeys-lru"),
    ("3.4", "fail", fact("routes", "limited", {"login": {"account": 10, "address": 30}}), "refresh"),
    ("3.4", "fail", countdown(299, 298, 298, 297), "299 298 298 297"),
    ("3.4", "fail", countdown(299, 280, 298, 279), "299 280 298 279"),
    ("3.4", "fail", countdown(None, None, None, None), "did not count down"),
    ("3.5", "fail", fact("routes", "docs", ["/docs"]), "/docs"),
    ("3.5", "fail", seen("docs /openapi.json", answered(200, {})), "/openapi.json"),
    ("3.5", "fail", seen("docs at management /docs", answered(200)), "/docs"),
    ("4.1", "fail", fact("routes", "streaming", []), "no inference route streams"),
    ("4.1", "fail", also(live=live(pieces=1)), "did not come as it was made"),
    ("4.1", "fail", also(live=live(first_s=0.5)), "did not come as it was made"),
    ("4.1", "fail", also(live=live(is_done=False)), "did not come as it was made"),
    ("4.1", "fail", also(live=live(content_type="application/json")), "application/json"),
    ("4.1", "unknown", ledger(CUT | {"ttft_ms": None}), "--key-file"),
    ("4.2", "fail", upstream("slots", None), "max_concurrency"),
    ("4.2", "fail", upstream("queue_deadline_s", None), "queue"),
    ("4.2", "fail", lambda server: server.worker["upstreams"]["one"].update(slots=32), "cap 'one' differently"),
    ("4.3", "fail", one_worker("client", "clients", 2), "worker 103 has 2 HTTP clients"),
    ("4.3", "fail", one_worker("client", "is_closed", True), "worker 103's HTTP client"),
    ("4.4", "fail", timeouts(idle_s=None), "idle_s"),
    ("4.4", "fail", timeouts(total_s=float("inf")), "total_s"),
    ("4.5", "fail", also(live=live(entries=(CUT, CUT))), "are to be one"),
    ("4.5", "fail", also(live=live(entries=(ROW,))), "completed 200"),
    ("4.5", "fail", also(live=live(slots_left=1)), "1 slots are still held"),
    ("4.5", "fail", ledger(ROW, CUT | {"status": 200}), "not 499"),
    ("4.5", "unknown", ledger(ROW), "--key-file"),
    ("5.1", "fail", root("workers_expected", 4), "3 of 4 workers"),
    ("5.1", "fail", lambda server: server.root["workers"][0].update(state="draining"), "101 draining"),
    ("5.1", "fail", root("stop_within_s", 20), "30 s to end"),
    ("5.1", "partial", lambda server: server.everywhere(lambda each: each.update(parent_pid=ROOT_PID)), "arbiter"),
    ("5.2", "fail", fact("http", "trusted_proxies", ["0.0.0.0/0"]), "0.0.0.0/0"),
    ("5.2", "fail", fact("http", "trusted_proxies", ["*"]), "everyone"),
    ("5.2", "fail", seen("forged_address", answered(204, None, ratelimit='"logout-address";r=299;t=900')), "believed"),
    ("5.2", "unknown", seen("forged_address", answered(429)), "15 minutes"),
    ("5.3", "fail", seen("health /health", answered(503, DOWN)), "down: database"),
    ("5.3", "fail", seen("health /health/ready", answered(503, {})), "/health/ready answered 503"),
    ("5.3", "partial", seen("health /health", answered(200, DEGRADED)), "ledger"),
    ("5.3", "fail", seen("health /health/live", SILENT), "ConnectError"),
    ("5.4", "fail", one_worker("logs", "form", "console"), "worker 103 writes for a terminal"),
    ("5.4", "fail", one_worker("logs", "redacts", False), "API key"),
    ("5.4", "fail", one_worker("logs", "loggers_with_their_own", ["uvicorn.access"]), "uvicorn.access"),
    ("5.5", "fail", seen("id own", answered()), "came back as 'made-by-it'"),
    ("5.5", "fail", seen("id none", Answer(200)), "has none"),
    ("5.5", "fail", seen("id hostile", answered(x_request_id=HOSTILE_ID)), "200 characters"),
    ("5.5", "fail", ledger(ROW, CUT, ROW | {"request_id": ""}), "no request id"),
]


def test_a_server_with_nothing_wrong_passes_all_25() -> None:
    found = findings(nothing_wrong().subject())
    assert [(finding.id, finding.verdict) for finding in found] == [
        (f"{section}.{item}", "pass") for section in range(1, 6) for item in range(1, 6)
    ]


def test_a_stream_that_was_tried_is_told_from_one_that_was_read_of() -> None:
    read, tried = nothing_wrong(), nothing_wrong()
    tried.others["live"] = live()
    for item in ("4.1", "4.5"):
        assert of(item, findings(read.subject())).evidence.startswith("read from the ledger")
        assert of(item, findings(tried.subject())).evidence.startswith("live")
        assert of(item, findings(tried.subject())).verdict == "pass"
    assert "settled after 40 ms" in of("4.5", findings(tried.subject())).evidence


def test_every_item_is_broken_here() -> None:
    assert {item for item, _, _, _ in CASES} == {check.id for _, checks in SECTIONS for check in checks}


@pytest.mark.parametrize(("item", "verdict", "broken", "told"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES])
def test_what_is_broken_is_named_with_what_is_wrong(item: str, verdict: Verdict, broken: Break, told: str) -> None:
    server = nothing_wrong()
    broken(server)
    finding = of(item, findings(server.subject()))
    assert finding.verdict == verdict
    assert told in finding.evidence


ALONE = [case for case in CASES if case[0] not in ("3.4", "4.5", "4.1", "5.5", "2.5", "1.3")]


@pytest.mark.parametrize(("item", "broken"), [(case[0], case[2]) for case in ALONE], ids=[c[3] for c in ALONE])
def test_what_is_broken_breaks_nothing_else(item: str, broken: Break) -> None:
    server = nothing_wrong()
    broken(server)
    assert {finding.id for finding in findings(server.subject()) if not finding.is_harmless} == {item}


def test_a_sqlite_file_has_no_pool_to_judge() -> None:
    server = nothing_wrong()
    server.everywhere(lambda worker: worker["database"].update(dialect="sqlite", driver="aiosqlite"))
    found = findings(server.subject())
    assert (of("2.2", found).verdict, of("2.2", found).is_harmless) == ("not_applicable", True)
    assert of("2.1", found).verdict == "pass"


def test_what_a_server_does_not_tell_is_unknown_and_ends_nothing() -> None:
    server = nothing_wrong()
    server.everywhere(lambda worker: worker.pop("database"))
    found = findings(server.subject())
    assert {finding.id: finding.verdict for finding in found if not finding.is_harmless} == {
        "2.1": "unknown",
        "2.2": "unknown",
        "2.3": "unknown",
        "3.3": "unknown",
    }
    assert "another version" in of("2.1", found).evidence


def test_nothing_passes_where_no_worker_answers() -> None:
    server = nothing_wrong()
    server.workers = []
    server.others["silent"] = (101, 102, 103)
    passed = {finding.id for finding in findings(server.subject()) if finding.verdict == "pass"}
    # What the port alone says.
    assert passed <= {"5.3"}


def test_a_trusted_peer_may_name_another_client() -> None:
    server = nothing_wrong()
    server.everywhere(lambda worker: worker["http"].update(trusted_proxies=["127.0.0.0/8"]))
    server.seen["forged_address"] = answered(204, ratelimit='"logout-address";r=299;t=900')
    finding = of("5.2", findings(server.subject()))
    assert finding.verdict == "pass"
    assert "cannot be tried from here" in finding.evidence


def test_tries_that_are_over_show_the_limit() -> None:
    server = nothing_wrong()
    server.countdown = [answered(429)]
    assert of("3.4", findings(server.subject())).verdict == "pass"


def test_what_goes_in_the_clear_is_shown_and_breaks_nothing() -> None:
    server = nothing_wrong()
    fact("settings", "in_the_clear", ["TIDEGATE_REDIS__URL (cache)", "upstreams.vllm.base_url (vllm)"])(server)
    shown = of("1.2", findings(server.subject()))
    assert shown.verdict == "pass"
    assert shown.evidence.endswith(
        "in the clear beyond this machine: TIDEGATE_REDIS__URL (cache); upstreams.vllm.base_url (vllm)"
    )
