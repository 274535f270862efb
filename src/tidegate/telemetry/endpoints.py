"""Health over HTTP: for people and monitors (`/health`), and for an orchestrator's probes (`/live`, `/ready`).

A 503 of these carries the envelope of every error beside its own report.
"""

from typing import Any, Literal

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tidegate.errors import Draining, Unavailable, envelope
from tidegate.http.context import SCOPE_KEY, RequestContext
from tidegate.telemetry.dependencies import HealthBoardDep
from tidegate.telemetry.health import CheckResult, HealthBoard, State

# A probe commonly waits for one second; what a check finds later is in the next answer.
READY_WITHIN_S = 0.5

router = APIRouter(tags=["health"])


class DependencyReport(BaseModel):
    status: Literal["ok", "down"]
    latency_ms: float
    note: str | None = None


class HealthReport(BaseModel):
    status: Literal["ok", "degraded", "unavailable", "starting", "draining", "behind"]
    version: str
    catalogue_version: str | None
    degraded: list[str]
    checks: dict[str, DependencyReport]


class Readiness(BaseModel):
    status: State
    degraded: list[str]


class Liveness(BaseModel):
    status: Literal["alive"]


@router.get("/health", responses={200: {"model": HealthReport}, 503: {"model": HealthReport}})
@router.head("/health", include_in_schema=False)
async def health(request: Request, board: HealthBoardDep) -> Response:
    """Every dependency, asked within the last second. 503 where one is down."""
    results = await board.results()
    down = sorted(name for name, result in results.items() if result.status == "down")
    report = {
        "status": _status(board, is_down=bool(down)),
        "version": board.version,
        "catalogue_version": board.catalogue_version,
        "degraded": sorted(board.degraded),
        "checks": {name: _check(result) for name, result in results.items()},
    }
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
    status: State = board.state if board.is_ready or board.state != "ready" else "starting"
    report = {"status": status, "degraded": sorted(board.degraded)}
    return _answer(request, report, None if board.is_ready else f"This process takes no work: it is {status}.")


def _status(board: HealthBoard, *, is_down: bool) -> str:
    if is_down:
        return "unavailable"
    if board.state != "ready":
        return board.state
    return "degraded" if board.degraded else "ok"


def _check(result: CheckResult) -> dict[str, Any]:
    told = {"status": result.status, "latency_ms": result.latency_ms}
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
