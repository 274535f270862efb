"""The response of the road: it runs the flow, so that what the flow opens is closed in the task that opened it."""

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tidegate.auth.principal import Principal
from tidegate.errors import TidegateError
from tidegate.http.context import RequestContext, request_context
from tidegate.inference import flow
from tidegate.inference.client import Client
from tidegate.inference.exchange import Exchange, RoadHeaders
from tidegate.inference.gateway import Gateway
from tidegate.inference.wire import parse_chat


class RoadResponse(StreamingResponse):
    """Streams what the flow sends. An error before the first byte is raised, for the edge to give it its status."""

    def __init__(self, gateway: Gateway, principal: Principal) -> None:
        # Nothing of Starlette's is set up: the flow sends for itself, by `Client`.
        self._gateway = gateway
        self._principal = principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = request_context(scope)
        client = Client(receive, send, request_id=context.request_id)
        try:
            call = parse_chat(await read_body(receive))
            headers = RoadHeaders.of(scope["headers"])
            exchange = Exchange(
                call=call,
                principal=self._principal,
                context=context,
                client=client,
                attribution=headers.attribution(call, self._gateway.end_user_headers),
                headers=headers,
                deadline_at=headers.deadline_at(context.started),
            )
            await flow.run(self._gateway, exchange)
        except TidegateError as error:
            self._count(context, error.http_code)
            raise
        except HTTPException as error:
            # How a body that is too large comes out of `receive`: Starlette's own class (`http.body_limit`).
            self._count(context, "request_too_large" if error.status_code == 413 else "invalid_request")
            raise

    def _count(self, context: RequestContext, code: str) -> None:
        """A refusal before anything was reserved is counted, not entered."""
        if context.entry is None:
            self._gateway.refusals.count(self._principal, code)


async def read_body(receive: Receive) -> bytes:
    """The request's whole body. Raises `ClientDisconnect`, and what bounds its size and time."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
