"""Tells every process of a deployment that something changed, so that none goes on by what it remembers.

A topic names what changed: `key:<id>`, `user:<id>`, `limits:<workspace id>`, `catalogue`. It is told after the commit.
Over Redis it is a message on `<key prefix>:changes`; without Redis it reaches this process alone. In a cluster that is
a shard channel, and everybody listens at the master of its slot.

A message may be lost, so nobody has to believe that none means no change. Redis sends a subscriber what it has to say
in one order. The answer to a PING that was sent at `t` therefore comes after everything that was told before `t`:
until then, `confirmed_at`, is what is known here vouched for. The PING goes out four times a second. An answer that
does not come within a second, a lost connection, a new subscription: each is a gap, after which nothing that was read
before is vouched for any more. Whoever tells tries for longer than a gap takes to be noticed, so where Redis itself is
why a message was lost, every subscriber knows that one may have been. In a cluster an echo takes PING's part: a message
of our own, told as others tell theirs, on a channel of the same slot. So a subscriber whose node has lost the slot, to
which it may still be connected, hears of none.

What is left: a teller that is cut off from a Redis that the others reach, or that dies between its commit and its
telling. Listeners need a bound of their own for that.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from tidegate.settings import Settings
from tidegate.storage.cluster_client import ClusterClient, echo_channel
from tidegate.storage.redis import RedisClient, close_redis, open_redis, open_server
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

Callback = Callable[[str | None], None]
"""Called with the topic, or with None for a gap: anything may have changed. It does not wait, and does not raise."""

CATALOGUE: Final = "catalogue"

PING_EVERY_S = 0.25
# Without an answer for this long the subscription has a gap.
UNANSWERED_S = 1.0
# One hears; on the others it is told.
MOST_CONNECTIONS: Final = 4
# Longer than a gap takes to be noticed: UNANSWERED_S after a PING that went out PING_EVERY_S late.
TELL_WITHIN_S = 2.0
_SUBSCRIBE_WITHIN_S = 2.0
_TELL_AGAIN_S = 0.05
_RETRY_S = (0.0, 0.05, 0.1, 0.2, 0.5)
_LOST: Final = (RedisError, OSError, TimeoutError)


def key_topic(key_id: uuid.UUID) -> str:
    return f"key:{key_id}"


def user_topic(user_id: uuid.UUID) -> str:
    return f"user:{user_id}"


def limits_topic(workspace_id: uuid.UUID) -> str:
    return f"limits:{workspace_id}"


class Changes:
    """What changed, told and heard.

    >>> async with Changes.running(settings) as changes:
    ...     changes.listen("key:", forget_key)
    ...     await changes.tell(key_topic(key_id))  # after the commit
    """

    def __init__(
        self,
        redis: RedisClient | None,
        channel: str,
        *,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gaps = 0
        self._redis = redis
        self._settings = settings
        self._channel = channel
        self._clock = clock
        self._listeners: list[tuple[str, Callback]] = []
        self._stands = False
        self._unbroken_since = 0.0
        self._confirmed_at = 0.0
        self._says_silence = True
        self._is_told = True

    @classmethod
    @asynccontextmanager
    async def running(cls, settings: Settings) -> AsyncIterator[Self]:
        """Tells and listens, until the block ends. It has connections of its own."""
        async with cls.publishing(settings) as changes, changes.hearing():
            yield changes

    @classmethod
    @asynccontextmanager
    async def publishing(cls, settings: Settings) -> AsyncIterator[Self]:
        """Tells, and hears nothing but itself: for a command in another process."""
        redis = open_redis(settings, max_connections=MOST_CONNECTIONS)
        try:
            yield cls(redis, f"{settings.redis.key_prefix}:changes", settings=settings)
        finally:
            if redis is not None:
                await close_redis(redis)

    @asynccontextmanager
    async def hearing(self) -> AsyncIterator[None]:
        """Hears other processes until the block ends. Without Redis there is nothing to hear."""
        if self._redis is None:
            yield
            return
        subscription = asyncio.create_task(self._subscribe(self._redis))
        try:
            yield
        finally:
            subscription.cancel()
            await asyncio.gather(subscription, return_exceptions=True)

    @property
    def is_live(self) -> bool:
        """Whether the subscription stands and is answered. Never without Redis: other processes cannot tell us then."""
        return self._stands and self._clock() - self._confirmed_at < UNANSWERED_S

    def vouched_until(self, read_at: float) -> float:
        """The last moment at which what was read at `read_at` had not changed, as far as was told.

        Both are of the clock. It is `read_at` itself where the subscription has not stood since. What a callback was
        told of is not considered here.
        """
        if self._stands and self._unbroken_since <= read_at < self._confirmed_at:
            return self._confirmed_at
        return read_at

    def listen(self, prefix: str, callback: Callback) -> None:
        """Calls back for each topic that begins with `prefix`, and for each gap."""
        self._listeners.append((prefix, callback))

    async def tell(self, topic: str) -> None:
        """Tells that this changed: to be called after the commit. Listeners of this process have heard when it returns.

        Never raises: where Redis does not take it within two seconds, that is logged, once.
        """
        self._hear(topic)
        if self._redis is None:
            return
        try:
            async with asyncio.timeout(TELL_WITHIN_S):
                await self._publish(self._redis, topic)
        except _LOST as error:
            if self._is_told:
                self._is_told = False
                log.warning("a change was not told to other processes", error=type(error).__name__)
        else:
            self._is_told = True

    async def _publish(self, redis: RedisClient, topic: str) -> None:
        if isinstance(redis, ClusterClient):
            await self._publish_in_cluster(redis, topic)
            return
        try:
            await redis.publish(self._channel, topic)
        except _LOST:
            # A pooled connection may have died; hearing it twice harms nobody.
            await redis.publish(self._channel, topic)

    async def _publish_in_cluster(self, cluster: ClusterClient, topic: str) -> None:
        while True:
            try:
                await cluster.spublish(self._channel, topic)
            except _LOST:
                # A replica may be taking its master's place: until the caller's deadline.
                await asyncio.sleep(_TELL_AGAIN_S)
            else:
                return

    def _hear(self, topic: str | None) -> None:
        for prefix, callback in self._listeners:
            if topic is None or topic.startswith(prefix):
                try:
                    callback(topic)
                # The edge to features: one that fails must not keep the others from hearing.
                except Exception:
                    log.exception("a listener to changes failed", topic=topic)

    async def _subscribe(self, redis: RedisClient) -> None:
        failures = 0
        while True:
            stood_at = self._unbroken_since
            try:
                await self._hear_all(redis)
            # The edge of a background task: whatever ends a subscription, the next one is tried.
            except Exception as error:  # noqa: BLE001 - drivers raise more than redis-py's own tree
                if self._says_silence:
                    self._says_silence = False
                    log.warning("changes of other processes are not heard", error=type(error).__name__)
            failures = 0 if self._unbroken_since != stood_at else failures + 1
            await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])

    async def _hear_all(self, redis: RedisClient) -> None:
        """Hears until the subscription breaks. Raises what broke it."""
        ear = await self._ear(redis)
        # The number of the last PING or echo, and when the next is due. `sent_at` is when what is not answered yet went
        # out.
        number, due_at = 0, 0.0
        sent_at: float | None = self._clock()
        try:
            async with asyncio.timeout(_SUBSCRIBE_WITHIN_S):
                await ear.subscribe()
            while True:
                now = self._clock()
                if sent_at is None and now >= due_at:
                    number, sent_at, due_at = number + 1, now, now + PING_EVERY_S
                    async with asyncio.timeout(UNANSWERED_S):
                        await ear.beat(number)
                message = await _next_message(ear.pubsub, within_s=due_at - now if sent_at is None else UNANSWERED_S)
                # Only where nothing was left to read: a loop that was held up itself has the answer still before it.
                if message is None:
                    if sent_at is not None and self._clock() - sent_at >= UNANSWERED_S:
                        raise TimeoutError
                    continue
                match message["type"]:
                    case "subscribe" | "ssubscribe":
                        # Also where redis-py connected again by itself.
                        sent_at = None
                        self._stand()
                    case "sunsubscribe":
                        raise ConnectionResetError("the channel's slot went to another node")
                    case _ if ear.is_answer(message, number):
                        if sent_at is not None:
                            self._confirmed_at, sent_at = sent_at, None
                    case "message" | "smessage" if message["channel"] == ear.channel.encode():
                        self._hear(bytes(message["data"]).decode("utf-8", "replace"))
        finally:
            self._stands = False
            with contextlib.suppress(*_LOST):
                await ear.aclose()

    async def _ear(self, redis: RedisClient) -> "_Ear | _ShardEar":
        if not isinstance(redis, ClusterClient):
            return _Ear(redis.pubsub(), self._channel)
        assert self._settings is not None
        url = await redis.url_of(self._channel)
        return _ShardEar(open_server(self._settings, url, max_connections=1), self._channel, redis)

    def _stand(self) -> None:
        self._unbroken_since = self._confirmed_at = self._clock()
        self._stands = True
        self.gaps += 1
        if not self._says_silence:
            self._says_silence = True
            log.warning("changes of other processes are heard again")
        self._hear(None)


class _Ear:
    """Listens to a channel of one server; it is answered by its PONGs."""

    def __init__(self, pubsub: PubSub, channel: str) -> None:
        self.pubsub = pubsub
        self.channel = channel

    async def subscribe(self) -> None:
        await self.pubsub.subscribe(self.channel)

    async def beat(self, number: int) -> None:
        await self.pubsub.ping(str(number))

    def is_answer(self, message: dict[str, Any], number: int) -> bool:
        return message["type"] == "pong" and bool(message["data"] == str(number).encode())

    async def aclose(self) -> None:
        await self.pubsub.aclose()  # type: ignore[no-untyped-call]


class _ShardEar:
    """Listens to a shard channel of a cluster at its master, and to its own echo beside it."""

    def __init__(self, server: Redis, channel: str, cluster: ClusterClient) -> None:
        self.pubsub = server.pubsub()
        self.channel = channel
        self._server = server
        self._cluster = cluster
        self._echo = echo_channel(channel)

    async def subscribe(self) -> None:
        # In this order: who is told that the first stands has all that is told before the first echo.
        await self.pubsub.ssubscribe(self.channel, self._echo)

    async def beat(self, number: int) -> None:
        await self._cluster.spublish(self._echo, str(number))

    def is_answer(self, message: dict[str, Any], number: int) -> bool:
        is_echo = message["type"] == "smessage" and message["channel"] == self._echo.encode()
        return is_echo and bool(message["data"] == str(number).encode())

    async def aclose(self) -> None:
        try:
            await self.pubsub.aclose()  # type: ignore[no-untyped-call]
        finally:
            await close_redis(self._server)


async def _next_message(pubsub: PubSub, *, within_s: float) -> dict[str, Any] | None:
    """The next message, None where none came in this time, or one came that is redis-py's own."""
    message: dict[str, Any] | None = await pubsub.get_message(timeout=max(within_s, 0.01))
    return message
