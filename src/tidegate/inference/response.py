"""The response of the road: it runs the flow, so that what the flow opens is closed in the task that opened it."""

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tidegate.auth.principal import Principal
from tidegate.errors import TidegateError
from tidegate.http.context import request_context
from tidegate.inference import flow
from tidegate.inference.client import Client
from tidegate.inference.exchange import Exchange, RoadHeaders
from tidegate.inference.gateway import Gateway
from tidegate.inference.wire import parse_chat


class RoadResponse(StreamingResponse):
    """Streams what the flow sends. An error before the first byte is raised, for the edge to give it its status."""

    def __init__(self, gateway: Gateway, body: bytes, principal: Principal) -> None:
        # Nothing of Starlette's is set up: the flow sends for itself, by `Client`.
        self._gateway = gateway
        self._body = body
        self._principal = principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = request_context(scope)
        client = Client(receive, send, request_id=context.request_id)
        try:
            call = parse_chat(self._body)
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
            if context.entry is None:
                self._gateway.refusals.count(self._principal, error.http_code)
            raise
