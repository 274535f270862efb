"""Health is answered in bounded time, whatever the dependencies do, and costs one round of checks a second."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.edge import Answer, Headers, call
from tests.support.waiting import eventually
from tidegate.auth.principal import Principal
from tidegate.auth.principal import Scope as KeyScope
from tidegate.errors import InvalidApiKey, Unavailable
from tidegate.http.errors import install_error_handlers
from tidegate.http.middleware import RequestEdge
from tidegate.telemetry.endpoints import router
from tidegate.telemetry.health import CHECK_TIMEOUT_S, HealthBoard
from tidegate.telemetry.logging import iso_now


class Dependency:
    """A check that a test breaks and mends."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.blocked: asyncio.Event | None = None
        self.clings = False

    async def __call__(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        while self.blocked is not None and not self.blocked.is_set():
            try:
                await self.blocked.wait()
            except asyncio.CancelledError:
                if not self.clings:
                    raise


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> HealthBoard:
    board = HealthBoard(version="0.1.0", catalogue_version="c1", clock=clock)
    board.state = "ready"
    return board


def app(board: HealthBoard, state: Mapping[str, Any] | None = None) -> ASGIApp:
    inner = FastAPI()
    inner.include_router(router)
    install_error_handlers(inner)

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"health": board, **(state or {})}
        await inner(scope, receive, send)

    return RequestEdge(with_state)


async def get(
    board: HealthBoard, path: str = "/health", *, state: Mapping[str, Any] | None = None, headers: Headers = ()
) -> Answer:
    answer = await call(app(board, state), "GET", path, headers=headers)
    assert answer.values("content-type") == ["application/json"]
    return answer


async def note() -> str:
    return "in-process"


async def test_report_of_a_healthy_process(board: HealthBoard) -> None:
    board.add("database", Dependency())
    board.add("cache", note, degrades_as="redis")
    answer = await get(board)
    assert answer.status == 200
    report = answer.json
    assert report["checks"]["database"].pop("latency_ms") >= 0
    assert report["checks"]["cache"].pop("latency_ms") >= 0
    assert all(check.pop("last_ok_at").endswith("Z") for check in report["checks"].values())
    assert report == {
        "status": "ok",
        "version": "0.1.0",
        "catalogue_version": "c1",
        "degraded": [],
        "checks": {"database": {"status": "ok"}, "cache": {"status": "ok", "note": "in-process"}},
    }


async def test_dependency_that_is_down_is_a_503_that_says_which_and_not_why(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Dependency()
    broken.error = ConnectionRefusedError("db.internal:5432 refused app:hunter2")
    board.add("database", Dependency())
    board.add("cache", broken, degrades_as="redis")
    answer = await get(board)
    assert answer.status == 503
    assert (answer.json["status"], answer.json["degraded"]) == ("unavailable", ["redis"])
    assert answer.json["checks"]["cache"]["status"] == "down"
    assert answer.json["checks"]["database"]["status"] == "ok"
    # The envelope of every error, beside the report.
    assert (answer.json["type"], answer.error["code"]) == ("error", "unavailable")
    assert answer.json["request_id"] == answer.header("x-request-id")
    assert b"db.internal" not in answer.body
    assert "ConnectionRefusedError" in caplog.text


async def test_last_good_time_stays_while_it_is_down(board: HealthBoard, clock: Clock) -> None:
    database, never = Dependency(), Dependency()
    never.error = ConnectionError()
    board.add("database", database)
    board.add("cache", never)
    good = (await board.results())["database"].last_ok_at
    assert good is not None
    assert abs(time.time() - good) < 60
    database.error = ConnectionError()
    clock.now += 1
    answer = await get(board)
    assert answer.json["checks"]["database"]["status"] == "down"
    assert answer.json["checks"]["database"]["last_ok_at"] == iso_now(good)
    assert answer.json["checks"]["cache"]["last_ok_at"] is None
    database.error = None
    clock.now += 1
    assert ((await board.results())["database"].last_ok_at or 0) > good


def with_details(board: HealthBoard) -> HealthBoard:
    board.details = lambda: {"pid": 7}
    board.modes = {"limits": "Each worker judges by its share."}
    board.flagged.add("limits")
    return board


async def test_stranger_reads_no_details(board: HealthBoard) -> None:
    with_details(board).details_port = 9000
    assert "details" not in (await get(board)).json
    # What is lost is the contract's; what goes on without it is not.
    assert (await get(board)).json["degraded"] == ["limits"]


async def test_whoever_came_by_the_management_port_reads_details(board: HealthBoard) -> None:
    with_details(board).details_port = 8000
    details = (await get(board)).json["details"]
    assert details == {"pid": 7, "degraded_modes": {"limits": "Each worker judges by its share."}}


async def test_outside_production_everybody_reads_details(board: HealthBoard) -> None:
    with_details(board).details_are_open = True
    assert (await get(board)).json["details"]["pid"] == 7


@pytest.mark.parametrize(
    ("scopes", "reads"), [({"metrics"}, True), ({"inference", "usage", "manage"}, False), (set(), False)]
)
async def test_details_need_the_scope_metrics(board: HealthBoard, scopes: set[KeyScope], reads: bool) -> None:
    with_details(board)

    class Known:
        async def authenticate(self, headers: object, address: object) -> Principal:
            return Principal(workspace_id=uuid.UUID(int=1), scopes=frozenset(scopes))

    answer = await get(board, state={"authenticator": Known()}, headers=[(b"x-api-key", b"tg_x")])
    assert (answer.status, "details" in answer.json) == (200, reads)


@pytest.mark.parametrize("refusal", [InvalidApiKey("no"), Unavailable("database"), None])
async def test_credentials_that_cannot_be_judged_cost_the_details_and_not_the_answer(
    board: HealthBoard, refusal: Exception | None
) -> None:
    with_details(board)

    class Unknown:
        async def authenticate(self, headers: object, address: object) -> Principal:
            if refusal is None:
                await asyncio.Event().wait()
            raise refusal or AssertionError

    answer = await get(board, state={"authenticator": Unknown()}, headers=[(b"authorization", b"Bearer x")])
    assert answer.status == 200
    assert "details" not in answer.json


async def test_loss_and_return_are_logged_once_each(
    board: HealthBoard, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    database = Dependency()
    board.add("database", database)
    for error in (None, ConnectionError(), ConnectionError(), None, None):
        database.error = error
        await board.results()
        clock.now += 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_crowd_costs_one_check_a_second(board: HealthBoard, clock: Clock) -> None:
    database = Dependency()
    board.add("database", database)
    await asyncio.gather(*(board.results() for _ in range(100)))
    await board.results()
    assert database.calls == 1
    clock.now += 0.99
    await board.results()
    assert database.calls == 1
    clock.now += 0.02
    await board.results()
    assert database.calls == 2


async def test_caller_that_goes_away_does_not_end_the_round(board: HealthBoard) -> None:
    database = Dependency()
    database.blocked = asyncio.Event()
    board.add("database", database)
    first = asyncio.create_task(board.results())
    second = asyncio.create_task(board.results())
    await eventually(lambda: database.calls)
    first.cancel()
    database.blocked.set()
    assert (await second)["database"].status == "ok"
    assert first.cancelled() or await asyncio.wait({first})


@pytest.mark.parametrize("clings", [False, True])
async def test_check_that_hangs_is_down_in_bounded_time(board: HealthBoard, clock: Clock, clings: bool) -> None:
    hanging, other = Dependency(), Dependency()
    hanging.blocked, hanging.clings = asyncio.Event(), clings
    board.add("database", hanging)
    board.add("cache", other)
    started = time.monotonic()
    results = await board.results()
    assert time.monotonic() - started < CHECK_TIMEOUT_S + 10
    assert (results["database"].status, results["cache"].status) == ("down", "ok")
    clock.now += 2
    again = asyncio.create_task(board.results())
    await eventually(lambda: other.calls == 2)
    # One that cannot be cancelled is not started again beside itself.
    assert hanging.calls == (1 if clings else 2)
    hanging.blocked.set()
    await again
    clock.now += 2
    await eventually(lambda: _is_ok(board, clock))
    await board.aclose()


async def _is_ok(board: HealthBoard, clock: Clock) -> bool:
    clock.now += 2
    return (await board.results())["database"].status == "ok"


async def test_live_asks_nobody(board: HealthBoard) -> None:
    database = Dependency()
    board.add("database", database)
    board.state = "starting"
    answer = await get(board, "/health/live")
    assert (answer.status, answer.json) == (200, {"status": "alive"})
    assert database.calls == 0


async def test_lost_dependency_leaves_it_ready_and_named(board: HealthBoard, clock: Clock) -> None:
    database, redis = Dependency(), Dependency()
    board.add("database", database)
    board.add("cache", redis, degrades_as="redis")
    assert (await get(board, "/health/ready")).json == {"status": "ready", "degraded": []}
    database.error = redis.error = ConnectionError()
    clock.now += 1
    answer = await get(board, "/health/ready")
    assert (answer.status, answer.json) == (200, {"status": "ready", "degraded": ["database", "redis"]})
    database.error = redis.error = None
    clock.now += 1
    assert (await get(board, "/health/ready")).json == {"status": "ready", "degraded": []}


async def test_ready_does_not_wait_for_a_check_that_hangs(board: HealthBoard) -> None:
    database = Dependency()
    database.blocked = asyncio.Event()
    board.add("database", database)
    answering = asyncio.create_task(get(board, "/health/ready"))
    assert (await answering).status == 200
    assert not database.blocked.is_set()
    await board.aclose()


@pytest.mark.parametrize(("state", "code"), [("starting", "unavailable"), ("behind", "unavailable")])
async def test_not_ready(board: HealthBoard, state: str, code: str) -> None:
    board.state = state  # type: ignore[assignment]  # a parameter of the test
    answer = await get(board, "/health/ready")
    assert (answer.status, answer.json["status"], answer.error["code"]) == (503, state, code)
    assert (await get(board)).status == 200


async def test_what_leaves_nothing_to_be_done_is_no_start(board: HealthBoard) -> None:
    board.flagged = {"limits"}
    board.refuses_work = lambda: "limits" in board.flagged
    answer = await get(board, "/health/ready")
    assert (answer.status, answer.json["status"], answer.json["degraded"]) == (503, "unavailable", ["limits"])
    assert answer.error["message"] == "This process takes no work: it is unavailable."
    board.flagged.clear()
    assert (await get(board, "/health/ready")).status == 200


async def test_who_leaves_or_refuses_checks_no_more_often_than_who_serves(clock: Clock) -> None:
    leaving: list[bool] = []
    board = HealthBoard(version="0.1.0", is_draining=lambda: bool(leaving), clock=clock)
    database = Dependency()
    board.add("database", database)
    board.state = "ready"
    await board.results()
    leaving.append(True)
    board.refuses_work = lambda: True
    clock.now += 0.9
    await board.results()
    assert database.calls == 1
    clock.now += 0.1
    await board.results()
    assert database.calls == 2
    await board.aclose()


async def test_draining_is_asked_of_who_knows() -> None:
    leaving: list[bool] = []
    board = HealthBoard(version="0.1.0", is_draining=lambda: bool(leaving))
    board.state = "ready"
    assert (await get(board, "/health/ready")).status == 200
    leaving.append(True)
    answer = await get(board, "/health/ready")
    assert (answer.status, answer.json["status"], answer.error["code"]) == (503, "draining", "draining")
    assert (await get(board)).json["status"] == "draining"


async def test_model_must_have_answered_once_and_may_die_later(board: HealthBoard, clock: Clock) -> None:
    model = Dependency()
    model.error = ConnectionError("still loading")
    board.add("model", model, must_have_answered=True)
    answer = await get(board, "/health/ready")
    assert (answer.status, answer.json["status"]) == (503, "starting")
    model.error = None
    clock.now += 1
    assert (await get(board, "/health/ready")).status == 200
    model.error = ConnectionError("died")
    clock.now += 1
    answer = await get(board, "/health/ready")
    assert (answer.status, answer.json["degraded"]) == (200, ["model"])


async def test_what_is_flagged_is_degraded_too(board: HealthBoard) -> None:
    board.flagged.add("redis")
    assert (await get(board, "/health/ready")).json["degraded"] == ["redis"]
    answer = await get(board)
    assert (answer.status, answer.json["status"], answer.json["degraded"]) == (200, "degraded", ["redis"])


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_head_is_answered_as_get_is(board: HealthBoard, path: str) -> None:
    answer = await call(app(board), "HEAD", path)
    assert answer.status == 200
    answer = await call(app(board), "POST", path)
    assert answer.status == 405


async def test_health_is_never_cached(board: HealthBoard) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await get(board, path)).header("cache-control") == "no-store"


def test_openapi_describes_health() -> None:
    api = FastAPI()
    api.include_router(router)
    paths = orjson.loads(orjson.dumps(api.openapi()))["paths"]
    assert set(paths) == {"/health", "/health/live", "/health/ready"}
    assert all(set(operations) == {"get"} for operations in paths.values())
