"""The span of a request as its edge sees it, from the first byte to the true end. Where tracing is on alone.

Probes have none: they come every second and say nothing of callers. What a span tells is what the access line tells:
no body, no header but the request id, and nothing that looks like a secret. Attributes are those of OpenTelemetry's
conventions for HTTP servers, and `tidegate.…`.
"""

import time
from collections.abc import MutableMapping
from typing import Any

from tidegate.http.context import RequestContext
from tidegate.http.proxies import PEER_IS_TRUSTED
from tidegate.telemetry.logging import bound_trace_id
from tidegate.telemetry.redaction import may_hold_secret, redact
from tidegate.telemetry.tracing import SERVER, STATE_KEY, Span, Tracer, Value

_PROBES = "/health"
_LONGEST_PATH = 1024
_FIRST_SERVER_ERROR = 500
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def begin_trace(scope: MutableMapping[str, Any], context: RequestContext) -> None:
    """Gives a request its trace, and its lines the trace's id."""
    tracer: Tracer | None = scope.get("state", {}).get(STATE_KEY)
    if tracer is None or context.path.startswith(_PROBES):
        # A request that waited behind another on its connection begins in that one's context.
        bound_trace_id.set(None)
        return
    context.trace = trace = tracer.begin(
        [value for name, value in scope["headers"] if name == b"traceparent"],
        is_trusted=PEER_IS_TRUSTED in scope,
        started=context.started,
        received_ns=context.received_ns,
    )
    bound_trace_id.set(trace.id)


def end_trace(scope: MutableMapping[str, Any], context: RequestContext) -> None:
    """Hands over the span of a request that has ended. Once a request, where its access line is written."""
    trace = context.trace
    if trace is None or not trace.is_sampled:
        return
    # A hot route is found by its path, and has no other template.
    route: str = context.path if context.is_on_road else getattr(scope.get("route"), "path", "")
    method = context.method if context.method in _METHODS else "HTTP"
    span = Span(
        f"{method} {route}" if route else method,
        SERVER,
        trace.id,
        trace.span_id,
        trace.parent_id,
        context.received_ns,
        trace.at_ns(time.perf_counter()),
        _attributes(scope, context, route),
        is_error=_is_error(context),
    )
    trace.record(span)


def _attributes(scope: MutableMapping[str, Any], context: RequestContext, route: str) -> dict[str, Value]:
    entry, status = context.entry, context.status
    attributes: dict[str, Value] = {
        "http.request.method": context.method if context.method in _METHODS else "_OTHER",
        "url.path": _safe(context.path[:_LONGEST_PATH]),
        "url.scheme": scope.get("scheme", "http"),
        "tidegate.request_id": _safe(context.request_id),
    }
    if route:
        attributes["http.route"] = route
    if status is not None:
        attributes["http.response.status_code"] = status
    if context.client_address is not None:
        attributes["client.address"] = context.client_address
    code = context.error_code
    if entry is not None:
        attributes["tidegate.entry_id"] = str(entry.entry_id)
        attributes["tidegate.model"] = _safe(entry.model)
        attributes["tidegate.outcome"] = entry.outcome
        attributes["tidegate.attempts"] = len(entry.attempts)
        if entry.cache is not None:
            attributes["tidegate.cache"] = entry.cache
        code = entry.error_code or code
    if code is not None:
        attributes["error.type"] = code
    return attributes


def _is_error(context: RequestContext) -> bool:
    """Whether the server failed: a refusal is the caller's, and so is a hang-up."""
    status, entry = context.status, context.entry
    if status is None or status >= _FIRST_SERVER_ERROR:
        return True
    # An answer that began well and did not end so.
    return status < 400 and entry is not None and entry.error_code is not None


def _safe(text: str) -> str:
    return redact(text) if may_hold_secret(text) else text
