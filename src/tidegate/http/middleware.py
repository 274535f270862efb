"""The outermost of the application: request id, catch-all, security headers and access line, in pure ASGI.

Invariants: every answer carries `X-Request-ID` and the security headers, every request ends in one access line, no
error leaves without the envelope, and nothing is answered twice. An answer that broke in the middle is left without a
clean end, so that the client sees that it is broken.
"""

from collections.abc import Awaitable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.http.access import AccessLog
from tidegate.http.body_limit import BodyLimit
from tidegate.http.context import HUNG_UP_KEY, SCOPE_KEY, RequestContext
from tidegate.http.cookies import with_own_cookies
from tidegate.http.cors import Cors
from tidegate.http.counting import STATE_KEY, RequestCounts
from tidegate.http.entrance import Entrance
from tidegate.http.errors import as_tidegate_error, internal_error, send_error
from tidegate.http.proxies import behind_trusted_proxies
from tidegate.http.security_headers import security_headers
from tidegate.http.tracing import begin_trace, end_trace
from tidegate.settings import Settings
from tidegate.settings.logs import LogsSettings
from tidegate.telemetry.logging import bound_entry_id, bound_request_id, get_logger, line_handler

log = get_logger(__name__)

_HUNG_UP = 499


def with_edge(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application behind its edge, outermost first: trusted proxies, request and entrance, CORS, body limit.

    It belongs outside Starlette's own stack:

    >>> class App(FastAPI):
    ...     def build_middleware_stack(self):
    ...         return with_edge(super().build_middleware_stack(), settings)
    """
    app = BodyLimit(app, settings.http.max_body_bytes)
    if settings.http.cors_origins:
        # Inside it, so that a page may read errors too.
        app = Cors(Caught(app), settings.http.cors_origins)
    traces = settings.tracing.endpoint is not None
    app = RequestEdge(app, entrance=Entrance(settings.http.allowed_hosts), logs=settings.logs, traces=traces)
    if settings.http.trusted_proxies:
        app = behind_trusted_proxies(app, settings.http.trusted_proxies)
    return app


class RequestEdge:
    """Gives each request its context, asks `entrance` whether it is served, and sees it to its end.

    Lines go where the root logger writes when the first request ends, unless `access` says otherwise.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: AccessLog | None = None,
        *,
        entrance: Entrance | None = None,
        logs: LogsSettings | None = None,
        traces: bool = False,
    ) -> None:
        self._app = app
        self._entrance = entrance or Entrance()
        self._access = access
        self._logs = logs
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext.of(scope)
        scope[SCOPE_KEY] = context
        if context.has_cookies:
            scope["headers"] = with_own_cookies(scope["headers"])
        # Never reset: the server's own last words on this request, said after us in the same task, bear the id too.
        bound_request_id.set(context.request_id)
        # A request that waited behind another on its connection begins in that one's context.
        bound_entry_id.set(None)
        if self._traces:
            begin_trace(scope, context)
        header = (b"x-request-id", context.request_id.encode())

        async def receive_and_note() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not context.complete:
                context.hung_up = True
            return message

        # Not a coroutine of its own: every chunk of every stream passes here.
        def note_and_send(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.body":
                context.bytes_sent += len(message.get("body", b""))
                context.complete = not message.get("more_body", False)
            elif message["type"] == "http.response.start":
                context.status = message["status"]
                headers = message.get("headers", ())
                rates = context.rate_headers
                message = {**message, "headers": [*headers, header, *rates, *security_headers(scope, headers)]}
            return send(message)

        try:
            self._entrance.judge(scope, context)
            await self._app(scope, receive_and_note, note_and_send)
            if context.status is None and not context.hung_up:
                log.error("a request was left without an answer", method=context.method, path=context.path)
                await send_error(scope, note_and_send, internal_error())
        except ClientDisconnect:
            context.hung_up = True
        except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the caller gets an envelope
            await _answer(scope, note_and_send, error)
        finally:
            if context.hung_up or HUNG_UP_KEY in scope:
                context.status = _HUNG_UP
            if self._access is None:
                self._access = AccessLog(line_handler(), self._logs)
            self._access.write(context)
            if self._traces:
                end_trace(scope, context)
            counts: RequestCounts | None = scope.get("state", {}).get(STATE_KEY)
            if counts is not None:
                counts.count(scope, context)


class Caught:
    """Answers what the application raises, as `RequestEdge` does, further in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the caller gets an envelope
            await _answer(scope, send, error)


async def _answer(scope: Scope, send: Send, error: Exception) -> None:
    context: RequestContext = scope[SCOPE_KEY]
    told = as_tidegate_error(error, scope)
    if told is None or (context.status is not None and not isinstance(error, HTTPException)):
        log.error("a request failed", exc_info=error, method=context.method, path=context.path, status=context.status)
    if context.status is None:
        await send_error(scope, send, told or internal_error())
