"""Calls to the provider, and what is kept of their answers.

A call has five seconds in all, an answer 256 KiB, and no redirect is followed: where one leads, a secret or a code
would go. What the provider says of itself is fetched when it is needed, once for all who wait, and kept for a while.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import anyio
import httpx2
import msgspec

from tidegate.errors import Unavailable, UpstreamError
from tidegate.upstream.transport import ANEW

DEADLINE_S: Final = 5.0
CLOSE_WITHIN_S: Final = 2.0
MOST_BYTES: Final = 256 * 1024
ISSUER_SETTING: Final = "TIDEGATE_SINGLE_SIGN_ON__ISSUER"
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True):
    """What the provider answered: the HTTP status, and its JSON object, empty where it is none."""

    status: int
    body: dict[str, Any]


class Calls:
    """Calls to one provider by a client that calls allowed addresses alone.

    >>> answer = await calls.send("GET", metadata.jwks_uri, what="its keys")
    """

    def __init__(self, client: httpx2.AsyncClient, *, deadline_s: float = DEADLINE_S) -> None:
        self._client = client
        self._deadline_s = deadline_s

    async def send(
        self,
        method: str,
        url: str,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Answer:
        """Raises `Unavailable` where nothing answers in time, `UpstreamError` for an answer that is none."""
        sent = {**_HEADERS, **(headers or {})}
        try:
            async with asyncio.timeout(self._deadline_s):
                sending = self._client.stream(
                    method,
                    url,
                    headers=sent,
                    content=content,
                    follow_redirects=False,
                    timeout=self._deadline_s,
                    # One that was kept may be closed just as it is used, and a code cannot be sent twice.
                    extensions={ANEW: True},
                )
                async with sending as response:
                    body = await _body(response, what)
        except (TimeoutError, httpx2.TimeoutException):
            raise Unavailable(
                f"The single sign-on provider did not answer within {self._deadline_s:g} s when asked for {what}: "
                f"try again, and check {ISSUER_SETTING}."
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unavailable(
                f"The single sign-on provider cannot be reached for {what} ({type(error).__name__}): "
                f"check {ISSUER_SETTING}."
            ) from None
        if 300 <= response.status_code < 400:
            raise failed(f"led elsewhere when asked for {what}, and redirects are not followed")
        return Answer(response.status_code, _json_object(body))


class Kept(Generic[T]):
    """A document that is fetched when it is needed, once for all who wait, and kept for `max_age_s`.

    `anew` fetches it before that, but not twice within `anew_after_s`.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[T]],
        *,
        max_age_s: float,
        anew_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._max_age_s = max_age_s
        self._anew_after_s = anew_after_s
        self._clock = clock
        self._kept: tuple[T, float] | None = None
        self._anew_at: float | None = None
        self._fetching: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Raises what `fetch` raises."""
        if self._kept is not None and self._clock() - self._kept[1] < self._max_age_s:
            return self._kept[0]
        return await self._fetched()

    async def anew(self) -> T:
        """The newest that may be had now. Raises what `fetch` raises."""
        now = self._clock()
        if self._anew_at is not None and now - self._anew_at < self._anew_after_s:
            return await self.get()
        self._anew_at = now
        return await self._fetched()

    async def aclose(self, within_s: float = CLOSE_WITHIN_S) -> None:
        """Ends a fetch that runs, and waits so long for its end, cancelled or not."""
        if self._fetching is not None and not self._fetching.done():
            self._fetching.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._fetching], timeout=within_s)

    async def _fetched(self) -> T:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_and_keep())
            # Whoever waited may be gone when it fails.
            self._fetching.add_done_callback(lambda task: task.cancelled() or task.exception())
        # One who goes away ends it for nobody else.
        return await asyncio.shield(self._fetching)

    async def _fetch_and_keep(self) -> T:
        fetched = await self._fetch()
        self._kept = (fetched, self._clock())
        return fetched


def failed(how: str) -> UpstreamError:
    """An answer of the provider that cannot be used. `how` goes on after its name."""
    return UpstreamError(f"The single sign-on provider {how}: check {ISSUER_SETTING}.", upstream="single sign-on")


async def _body(response: httpx2.Response, what: str) -> bytes:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        # A few bytes may be many, decoded.
        raise failed(f"compressed its answer when asked for {what}, though it was told not to")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MOST_BYTES:
            raise failed(f"answered with more than {MOST_BYTES // 1024} KiB when asked for {what}")
    return bytes(body)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
