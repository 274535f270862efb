"""Health over HTTP: for people and monitors (`/health`), and for an orchestrator's probes (`/live`, `/ready`).

A 503 of these carries the envelope of every error beside its own report. Nobody has to say who they are; what this
process tells of itself beyond the contract's form is for who came by the management port and for callers with the scope
`metrics` (admins have it), and outside production for everybody.
"""

import asyncio
from typing import Any, Literal

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tidegate.auth.dependencies import get_caller
from tidegate.errors import Draining, TidegateError, Unavailable, envelope
from tidegate.http.context import SCOPE_KEY, RequestContext
from tidegate.http.management import is_open_to
from tidegate.telemetry.dependencies import HealthBoardDep
from tidegate.telemetry.health import CHECK_TIMEOUT_S, CheckResult, HealthBoard, ReadyState
from tidegate.telemetry.logging import iso_now

# A probe commonly waits for one second; what a check finds later is in the next answer.
READY_WITHIN_S = 0.5

router = APIRouter(tags=["health"])


class DependencyReport(BaseModel):
    status: Literal["ok", "down"]
    latency_ms: float
    last_ok_at: str | None
    note: str | None = None


class LoopReport(BaseModel):
    """How late the loop's turns come: the last one, and the worst of the last minute."""

    last_ms: float
    worst_ms: float


class JournalReport(BaseModel):
    """Requests at work, entries that wait for the database, and the age of the oldest of them."""

    open: int
    waiting: int
    oldest_s: float | None


class BreakerReport(BaseModel):
    """`since` is null where it was never in another state."""

    state: Literal["closed", "open", "off"]
    since: str | None


class HealthDetails(BaseModel):
    """This process alone: each worker has its own."""

    pid: int
    uptime_s: float
    loop: LoopReport
    journal: JournalReport
    breakers: dict[str, BreakerReport]
    degraded_modes: dict[str, str]


class HealthReport(BaseModel):
    status: Literal["ok", "degraded", "unavailable", "starting", "draining", "behind"]
    version: str
    catalogue_version: str | None
    degraded: list[str]
    checks: dict[str, DependencyReport]
    details: HealthDetails | None = None


class Readiness(BaseModel):
    status: ReadyState
    degraded: list[str]


class Liveness(BaseModel):
    status: Literal["alive"]


@router.get("/health", responses={200: {"model": HealthReport}, 503: {"model": HealthReport}})
@router.head("/health", include_in_schema=False)
async def health(request: Request, board: HealthBoardDep) -> Response:
    """Every dependency, asked within the last second. 503 where one is down. `details` are for operators."""
    results, shows_details = await asyncio.gather(board.results(), _may_read_details(request, board))
    down = sorted(name for name, result in results.items() if result.status == "down")
    report = {
        "status": _status(board, is_down=bool(down)),
        "version": board.version,
        "catalogue_version": board.catalogue_version,
        "degraded": sorted(board.degraded),
        "checks": {name: _check(result) for name, result in results.items()},
    }
    if shows_details:
        report["details"] = board.details() | {"degraded_modes": board.degraded_modes}
    return _answer(request, report, f"Not answering: {', '.join(down)}." if down else None)


@router.get("/health/live", responses={200: {"model": Liveness}})
@router.head("/health/live", include_in_schema=False)
async def live() -> Response:
    """The process runs and its loop turns. Asks nobody."""
    return Response(b'{"status":"alive"}', media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/health/ready", responses={200: {"model": Readiness}, 503: {"model": Readiness}})
@router.head("/health/ready", include_in_schema=False)
async def ready(request: Request, board: HealthBoardDep) -> Response:
    """Whether to send work here. A lost database or Redis leaves it 200, named in `degraded`."""
    await board.results(within_s=READY_WITHIN_S)
    status = board.readiness
    report = {"status": status, "degraded": sorted(board.degraded)}
    return _answer(request, report, None if status == "ready" else f"This process takes no work: it is {status}.")


async def _may_read_details(request: Request, board: HealthBoard) -> bool:
    if board.details_are_open or (board.details_port is not None and is_open_to(request.scope, board.details_port)):
        return True
    if not any(name in request.headers for name in ("authorization", "x-api-key", "cookie")):
        return False
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            principal = await get_caller(request)
    except (TidegateError, TimeoutError):
        # Health is answered to everybody, also while nobody can be judged.
        return False
    return "metrics" in principal.scopes


def _status(board: HealthBoard, *, is_down: bool) -> str:
    if is_down:
        return "unavailable"
    if board.state != "ready":
        return board.state
    return "degraded" if board.degraded else "ok"


def _check(result: CheckResult) -> dict[str, Any]:
    last_ok_at = None if result.last_ok_at is None else iso_now(result.last_ok_at)
    told = {"status": result.status, "latency_ms": result.latency_ms, "last_ok_at": last_ok_at}
    return told | ({"note": result.note} if result.note is not None else {})


def _answer(request: Request, report: dict[str, Any], refusal: str | None) -> Response:
    headers = {"Cache-Control": "no-store"}
    if refusal is None:
        return Response(orjson.dumps(report), media_type="application/json", headers=headers)
    error = Draining(refusal) if report["status"] == "draining" else Unavailable(refusal)
    context: RequestContext | None = request.scope.get(SCOPE_KEY)
    if context is not None:
        context.error_code = error.http_code
    body = orjson.loads(envelope(error, context.request_id if context else None)) | report
    return Response(orjson.dumps(body), status_code=503, media_type="application/json", headers=headers)
