"""Metrics over HTTP, for Prometheus."""

import ipaddress

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from tidegate.auth.dependencies import RequireScope, get_caller
from tidegate.http.context import SCOPE_KEY, RequestContext
from tidegate.http.management import is_open_to
from tidegate.settings import Settings
from tidegate.telemetry.metrics.dependencies import ExpositionDep
from tidegate.telemetry.metrics.exposition import CONTENT_TYPE

router = APIRouter(tags=["metrics"])


async def may_read_metrics(request: Request) -> None:
    """Lets through who came by the management port, who is on loopback outside of production, and the scope `metrics`.

    Raises as `RequireScope` does.
    """
    settings: Settings = request.state.settings
    port = settings.server.management_port
    if port is not None and is_open_to(request.scope, port):
        return
    if not settings.in_production and _is_on_loopback(request):
        return
    await RequireScope("metrics")(await get_caller(request))


@router.get(
    "/metrics",
    dependencies=[Depends(may_read_metrics)],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        # Of who needs the scope.
        **{status: {"$ref": f"#/components/responses/{status}"} for status in (401, 403, 429)},
    },
)
async def metrics(exposition: ExpositionDep) -> Response:
    """Every series of this server, over all its workers, in Prometheus' text format."""
    return Response(await exposition.text(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})


def _is_on_loopback(request: Request) -> bool:
    """By the caller's own address, behind trusted proxies too."""
    context: RequestContext | None = request.scope.get(SCOPE_KEY)
    if context is None or context.client_address is None:
        return False
    try:
        return ipaddress.ip_address(context.client_address).is_loopback
    except ValueError:
        return False
