"""Every error of every route in the one envelope: from a feature's `TidegateError`, from Starlette, from FastAPI.

`answer` is for pure ASGI; `install_error_handlers` is for the app. What is not foreseen is a 500 whose message says
nothing; the request id leads to the line that tells all.
"""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Message, Scope, Send

from tidegate.errors import InsufficientQuota, InternalError, InvalidRequest, TidegateError, ValidationFailed, envelope
from tidegate.http.context import SCOPE_KEY, RequestContext
from tidegate.telemetry.logging import get_logger
from tidegate.telemetry.redaction import redact

log = get_logger(__name__)

JSON = "application/json"
_CODE_BY_STATUS = {
    401: "invalid_token",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    431: "headers_too_large",
    502: "upstream_error",
    503: "unavailable",
    504: "upstream_timeout",
}
_MOST_FAULTS = 50
_LONGEST_NAME = 128
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class HttpError(TidegateError):
    """A refusal that came as a bare HTTP status, from the framework and not from a feature."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, headers=headers)
        self._status = status

    @property
    def http_status(self) -> int:
        return self._status

    @property
    def http_code(self) -> str:
        return _CODE_BY_STATUS.get(self._status) or ("internal_error" if self._status >= 500 else "invalid_request")


def internal_error() -> InternalError:
    return InternalError("Something went wrong in the gateway. The log tells more under this request's id.")


async def send_error(scope: Scope, send: Send, error: TidegateError) -> None:
    """Answers a request with this error, where nothing has been sent yet."""
    status, headers, body = _answer(scope, error)
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw += [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
    start: Message = {"type": "http.response.start", "status": status, "headers": raw}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def error_response(scope: Scope, error: TidegateError) -> Response:
    """The same as a response."""
    status, headers, body = _answer(scope, error)
    return Response(body, status_code=status, headers=headers, media_type=JSON)


def install_error_handlers(app: FastAPI) -> None:
    """Gives the app's errors the envelope, unknown routes and methods and its own faults included."""
    app.add_exception_handler(TidegateError, _on_tidegate_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(ResponseValidationError, _on_invalid_response)
    app.add_exception_handler(Exception, _on_unforeseen)


def as_tidegate_error(error: Exception, scope: Scope) -> TidegateError | None:
    """What the caller is told of an error that has a meaning over HTTP; None of any other."""
    if isinstance(error, TidegateError):
        return error
    if isinstance(error, HTTPException):
        return _from_http_exception(error, scope)
    if isinstance(error, RequestValidationError):
        return from_faults(error.errors(), on_api=_is_on_api(scope))
    return None


def from_faults(faults: Sequence[Mapping[str, Any]], *, on_api: bool) -> TidegateError:
    """Pydantic's list of faults as the error of the route: 400 with `param` under /v1, 422 with `errors` elsewhere.

    What was sent is in neither: it may be a secret.
    """
    broken = next((fault for fault in faults if fault["type"] == "json_invalid"), None)
    if broken is not None:
        reason = broken.get("ctx", {}).get("error", broken["msg"])
        return InvalidRequest(f"The body is not valid JSON: {reason} at character {broken['loc'][-1]}.")
    told = [
        {"loc": [_shown(part) for part in fault["loc"]], "message": _plain(fault["msg"])}
        for fault in faults[:_MOST_FAULTS]
    ]
    lines = "; ".join(f"{param_of(fault['loc'])}: {_plain(fault['msg'])}" for fault in faults[:3])
    if on_api:
        return InvalidRequest(lines, param=param_of(faults[0]["loc"]) if faults else None)
    return ValidationFailed(lines, told)


def param_of(location: Iterable[str | int]) -> str:
    """A place in a request as a caller would write it.

    >>> param_of(("body", "messages", 0, "role"))
    'messages[0].role'
    """
    name = ""
    for n, part in enumerate(location):
        if n == 0 and part in ("body", "query", "path", "header", "cookie"):
            continue
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{_shown(part)}" if name else str(_shown(part))
    return name or "body"


def _shown(part: str | int) -> str | int:
    """A name that a caller chose is told as far as a person reads it: else an answer is as long as its request."""
    return part if isinstance(part, int) or len(part) <= _LONGEST_NAME else f"{part[:_LONGEST_NAME]}…"


async def _on_tidegate_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, error if isinstance(error, TidegateError) else internal_error())


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _on_unforeseen(request, error)
    if error.status_code < 200 or error.status_code in (204, 205, 304):
        return Response(status_code=error.status_code, headers=error.headers)
    return error_response(request.scope, _from_http_exception(error, request.scope))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    told = as_tidegate_error(error, request.scope)
    return error_response(request.scope, told or internal_error())


async def _on_invalid_response(request: Request, error: Exception) -> Response:
    # Its own text holds what was about to be answered; that belongs in no log.
    if isinstance(error, ResponseValidationError):
        faults = [f"{param_of(fault['loc'])}: {fault['type']}" for fault in error.errors()[:_MOST_FAULTS]]
        log.error("an answer did not fit its schema", path=request.url.path, faults=faults)
    return error_response(request.scope, internal_error())


async def _on_unforeseen(request: Request, _: Exception) -> Response:
    # Starlette raises it again after this answer, and the edge logs it.
    return error_response(request.scope, internal_error())


def _answer(scope: Scope, error: TidegateError) -> tuple[int, dict[str, str], bytes]:
    context: RequestContext | None = scope.get(SCOPE_KEY)
    if context is not None:
        context.error_code = error.http_code
    headers = {**error.headers, **_retry_headers(error)}
    return error.http_status, headers, envelope(error, context.request_id if context else None)


def _retry_headers(error: TidegateError) -> dict[str, str]:
    """What OpenAI's and Anthropic's own clients read beside `Retry-After`: the same in ms, and whether to retry."""
    headers: dict[str, str] = {}
    seconds = next((value for name, value in error.headers.items() if name.lower() == "retry-after"), None)
    if error.http_code == InsufficientQuota.code:
        headers["x-should-retry"] = "false"
    elif seconds is not None and error.http_status in (429, 503) and "x-should-retry" not in error.headers:
        headers["x-should-retry"] = "true"
    # It may be a date; then that is all there is.
    if seconds is not None and seconds.isdecimal() and "retry-after-ms" not in error.headers:
        headers["retry-after-ms"] = f"{seconds}000"
    return headers


def _from_http_exception(error: HTTPException, scope: Scope) -> TidegateError:
    headers = dict(error.headers or {})
    path, method = scope["path"], scope["method"]
    detail: object = error.detail
    message = detail if isinstance(detail, str) else _phrase(error.status_code)
    if message == _phrase(error.status_code):
        # Who mistakes a place puts a key into a path.
        shown = redact(path[:256])
        if error.status_code == 404:
            message = f"There is nothing at {method} {shown}."
        elif error.status_code == 405:
            headers = {"Allow": ", ".join(_methods_at(scope)) or _allowed(headers) or ""}
            message = f"{method} is not allowed at {shown}; allowed: {headers['Allow'] or 'nothing'}."
    return HttpError(error.status_code, message, headers=headers)


def _methods_at(scope: Scope) -> list[str]:
    """Every method that this path has a route for (RFC 9110, 10.2.1); Starlette names those of the first alone."""
    routes = scope["app"].router.routes if "app" in scope else ()
    # Most are not of this path at all, whatever the method.
    routes = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
    asked = ((method, {**scope, "method": method}) for method in _METHODS)
    return [method for method, ask in asked if any(route.matches(ask)[0] is Match.FULL for route in routes)]


def _allowed(headers: Mapping[str, str]) -> str | None:
    return next((value for name, value in headers.items() if name.lower() == "allow"), None)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def _is_on_api(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.startswith("/v1/")


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")
