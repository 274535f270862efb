"""One HTTP/1.1 connection to an upstream: a request out, its answer in, one after the other.

A connection is either busy with one exchange, or fit for the next (`is_reusable`), or closed. Closing waits for
nothing, and whatever cuts an exchange short, a cancellation or a fault, closes at once.
"""

from collections.abc import AsyncIterable

import httpx2

from tidegate.upstream.answer_reader import AnswerReader
from tidegate.upstream.network import UpstreamStream
from tidegate.upstream.request_head import RequestHead


class Http11Connection:
    """`exchange` sends a request and returns when its answer's head stands here; then `read` gives the body."""

    def __init__(self, stream: UpstreamStream) -> None:
        self._stream = stream
        self._answer = AnswerReader()
        # Of the last request: it went out whole, and did not say that it is the last.
        self._may_go_on = False
        self._write_timeout: float | None = None
        self._read_timeout: float | None = None

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._answer.headers

    @property
    def has_answered(self) -> bool:
        """Whether anything of an answer to the last request came."""
        return self._answer.has_begun

    @property
    def was_waited_on_in_vain(self) -> bool:
        """Whether the answer is that the upstream did not wait longer for a request (408) and closes the connection."""
        return self.status == 408 and any(
            name.lower() == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]
            for name, value in self.headers
        )

    @property
    def is_reusable(self) -> bool:
        """The last answer was read to its end, both sides keep alive, and nothing came since."""
        answer = self._answer
        return self._may_go_on and answer.is_complete and answer.keeps_alive and self._stream.is_quiet

    async def exchange(self, request: httpx2.Request, head: RequestHead) -> None:
        """Raises `httpx2.TransportError`. Left by any exception, the connection is closed."""
        timeouts = request.extensions.get("timeout", {})
        self._write_timeout, self._read_timeout = timeouts.get("write"), timeouts.get("read")
        answer = self._answer
        answer.begin(request.method)
        self._may_go_on = False
        try:
            assert isinstance(request.stream, AsyncIterable)
            await self._send(request.stream, head)
            while not answer.has_head:
                answer.check()
                await self._advance()
        except BaseException:
            self.close()
            raise

    async def read(self) -> bytes:
        """The body's next bytes, as they came; none at its end. Raises `ReadError`, `ReadTimeout` and the like."""
        answer = self._answer
        try:
            while True:
                data = answer.take()
                if data or answer.is_complete:
                    return data
                await self._advance()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stream.close()

    async def _send(self, body: AsyncIterable[bytes], head: RequestHead) -> None:
        """Returns early where the upstream answered before it was sent everything."""
        unsent = head.data
        left = head.length
        async for piece in body:
            if not piece:
                continue
            if left is None:
                self._stream.write(unsent, b"%x\r\n" % len(piece), piece, b"\r\n")
            else:
                left -= len(piece)
                if left < 0:
                    raise httpx2.LocalProtocolError("The request's body is longer than its header content-length says.")
                self._stream.write(unsent, piece)
            unsent = b""
            if not await self._is_taken():
                return
        if left:
            raise httpx2.LocalProtocolError("The request's body is shorter than its header content-length says.")
        if left is None:
            unsent += b"0\r\n\r\n"
        if unsent:
            self._stream.write(unsent)
            if not await self._is_taken():
                return
        self._may_go_on = head.keeps_alive

    async def _is_taken(self) -> bool:
        """Whether what was written is on its way. It is not where an answer or the end came first."""
        while not await self._stream.taken(self._write_timeout):
            await self._advance()
            if self._answer.is_settled:
                return False
        return True

    async def _advance(self) -> None:
        """Reads once what comes next."""
        data = await self._stream.read(self._read_timeout)
        if data:
            self._answer.feed(data)
        else:
            self._answer.end()
