"""What the edge knows of one request, from its first byte to its true end.

`http.middleware` makes one for every HTTP request, puts it into the scope and writes the access line from it at the
end. The floors below fill in what they learn: authentication sets `workspace_id` and `key_prefix`, or `user_id` for who
came without a key; the flow sets `entry` once the ledger's entry is terminal. Nothing here is shared between requests.
"""

import re
import time
import uuid
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from random import getrandbits
from typing import Any

from tidegate.ledger.entry import Entry
from tidegate.telemetry.tracing import Trace

SCOPE_KEY = "tidegate"
# Set in the scope by `http.protocol` when the connection is lost before the answer was complete.
HUNG_UP_KEY = "tidegate.hung_up"

# A label is logged, stored and sent on, so it is none where it begins as a key or a token does.
_REQUEST_ID = re.compile(rb"(?!tg[rm]?_|sk-|eyJ)[A-Za-z0-9._-]{1,128}")
_LONGEST_USER_AGENT = 512
_LONGEST_ADDRESS = 64


class RequestContext:
    """One request as the edge sees it.

    `status` is what was sent, None until then, 499 where the client hung up before the end. `started` is of
    `time.perf_counter`, `received_at` UTC. `content_length` and `content_encoding` are as they came, unchecked.
    `bytes_sent` counts the body. `is_on_road` where the route is of the road; `rate_headers` go with every answer to
    it, errors too.
    `trace` is None where nothing traces it.
    `error_code` is the envelope's, if one was sent. `client_address` is the caller's own, behind trusted proxies too.

    >>> request_context({"tidegate": RequestContext("r-1", "GET", "/health")}).request_id
    'r-1'
    """

    __slots__ = (
        "bytes_sent",
        "client_address",
        "complete",
        "content_encoding",
        "content_length",
        "entry",
        "error_code",
        "has_cookies",
        "hung_up",
        "is_on_road",
        "key_prefix",
        "method",
        "path",
        "rate_headers",
        "received_ns",
        "request_id",
        "started",
        "status",
        "trace",
        "user_agent",
        "user_id",
        "workspace_id",
    )

    def __init__(
        self,
        request_id: str,
        method: str,
        path: str,
        client_address: str | None = None,
        user_agent: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.method = method
        self.path = path
        self.client_address = client_address
        self.user_agent = user_agent
        self.started = time.perf_counter()
        self.received_ns = time.time_ns()
        self.status: int | None = None
        self.content_encoding: bytes | None = None
        self.content_length: bytes | None = None
        self.has_cookies = False
        self.bytes_sent = 0
        self.complete = False
        self.hung_up = False
        self.is_on_road = False
        self.rate_headers: Sequence[tuple[bytes, bytes]] = ()
        self.entry: Entry | None = None
        self.error_code: str | None = None
        self.trace: Trace | None = None
        self.key_prefix: str | None = None
        self.workspace_id: uuid.UUID | None = None
        self.user_id: uuid.UUID | None = None

    @property
    def received_at(self) -> datetime:
        return datetime.fromtimestamp(self.received_ns / 1_000_000_000, UTC)

    def now(self) -> datetime:
        """UTC, by the wall clock as it stood when the request came: one that is stepped since then moves nothing."""
        return self.received_at + timedelta(seconds=time.perf_counter() - self.started)

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> "RequestContext":
        """The context of an HTTP scope that has just come in."""
        headers = dict(scope["headers"])
        label = headers.get(b"x-request-id")
        agent = headers.get(b"user-agent")
        client = scope.get("client")
        context = cls(
            label.decode("ascii") if label is not None and _REQUEST_ID.fullmatch(label) else new_request_id(),
            scope["method"],
            scope["path"],
            _address(client[0]) if client else None,
            agent[:_LONGEST_USER_AGENT].decode("latin-1") if agent is not None else None,
        )
        context.content_length = headers.get(b"content-length")
        context.content_encoding = headers.get(b"content-encoding")
        context.has_cookies = b"cookie" in headers
        return context


def new_request_id() -> str:
    """A fresh label for a request that brought none, or one that is not kept."""
    # A label, not a secret. The generator is seeded anew in forked children.
    return getrandbits(128).to_bytes(16).hex()


def _address(host: str) -> str:
    """An IPv4 client of a listener for both IPs, as the IPv4 address; in hexadecimal digits it stays as it is."""
    return host[:_LONGEST_ADDRESS].removeprefix("::ffff:" if "." in host else "")


def request_context(scope: MutableMapping[str, Any]) -> RequestContext:
    """The context of this request. Raises `KeyError` where the edge's middleware is missing."""
    context: RequestContext = scope[SCOPE_KEY]
    return context
