"""A Redis Cluster for those who ask it plainly: the few commands of redis-py's client that we use, with its errors.

It is `PipelinedCluster` below: one connection to each master, opened behind the first command. A command waits at most
`SOCKET_TIMEOUT_S`, and is sent once. Names and values come and go as redis-py has them, undecoded.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tidegate.storage.password_file import PasswordFile
from tidegate.storage.pipeline_cluster import PipelinedCluster
from tidegate.storage.pipeline_wire import Address, Argument, ScriptError, StoreGone

COMMAND_WITHIN_S = 1.0


class ClusterScript:
    """A script as `Redis.register_script` gives one. Its keys are of one tag."""

    def __init__(self, client: "ClusterClient", source: str) -> None:
        self._client = client
        self._source = source
        # SHA-1 is how Redis names a script.
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str], args: Iterable[Argument]) -> Any:
        rest: tuple[Argument, ...] = (len(keys), *keys, *args)
        try:
            return await self._client.ask(keys[0], "EVALSHA", self._sha, *rest)
        except ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            # A script that the node does not know did not run, so this is no second time.
            return await self._client.ask(keys[0], "EVAL", self._source, *rest)


class ClusterClient:
    """In the place of `redis.asyncio.Redis` where the settings say that it is a cluster.

    Commands raise `redis.RedisError`.
    """

    def __init__(
        self, url: str, *, client_name: str, connect_timeout_s: float, password_file: PasswordFile | None = None
    ) -> None:
        """Raises `ValueError` where the URL cannot be read."""
        self._url = url
        address = Address.of(url, password_file)
        self._cluster = PipelinedCluster(
            address, client_name=client_name, scripts={}, connect_timeout_s=connect_timeout_s
        )
        self._open = AsyncExitStack()
        self._opening: asyncio.Task[None] | None = None

    def register_script(self, source: str) -> ClusterScript:
        return ClusterScript(self, source)

    async def get(self, name: str) -> bytes | None:
        found: bytes | None = await self.ask(name, "GET", name)
        return found

    async def delete(self, name: str) -> int:
        return int(await self.ask(name, "DEL", name))

    async def spublish(self, channel: str, message: str) -> int:
        """To those who listen at the master of the channel's slot (Redis 7)."""
        return int(await self.ask(channel, "SPUBLISH", channel, message))

    async def ping(self) -> bool:
        """Raises `redis.RedisError` also where a slot has no master that is connected."""
        await self.of_each("PING")
        return True

    async def info_of_each(self, section: str) -> list[dict[str, str]]:
        """What INFO says of a section, of each master."""
        return [_fields(answer) for answer in await self.of_each("INFO", section)]

    async def of_each(self, *args: Argument) -> list[Any]:
        """What each master answers. Raises `redis.RedisError` where a slot has none that is connected."""
        answers: list[Any] = await self._bounded(self._of_each(args))
        return answers

    async def ask(self, key: str, *args: Argument) -> Any:
        """A command to the master of a key."""
        return await self._bounded(self._asked(key, args))

    async def url_of(self, key: str) -> str:
        """The URL of the master of a key, for a connection of one's own. It holds the password."""
        await self._bounded(self._opened())
        try:
            host, port = self._cluster.owner(key)
        except StoreGone as gone:
            raise RedisConnectionError(str(gone)) from None
        url = urlsplit(self._url)
        whom, at, _ = url.netloc.rpartition("@")
        host = f"[{host}]" if ":" in host else host
        return urlunsplit(url._replace(netloc=f"{whom}{at}{host}:{port}"))

    async def aclose(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self._open.aclose()

    async def _asked(self, key: str, args: Sequence[Argument]) -> Any:
        await self._opened()
        return await self._cluster.send_by(key, *args)

    async def _of_each(self, args: Sequence[Argument]) -> list[Any]:
        await self._opened()
        if not self._cluster.is_whole:
            raise StoreGone("a slot of the cluster has no master that is connected")
        return await self._cluster.ask_each(*args)

    async def _opened(self) -> None:
        if self._opening is None:
            self._opening = asyncio.create_task(self._enter())
        if not self._opening.done():
            # Who leaves does not end it for the others.
            await asyncio.shield(self._opening)

    async def _enter(self) -> None:
        await self._open.enter_async_context(self._cluster.kept())

    async def _bounded(self, asking: Any) -> Any:
        try:
            async with asyncio.timeout(COMMAND_WITHIN_S):
                return await asking
        except TimeoutError:
            raise RedisTimeoutError(f"no answer within {COMMAND_WITHIN_S:g} s") from None
        except StoreGone as gone:
            raise RedisConnectionError(str(gone)) from None
        except ScriptError as refused:
            raise ResponseError(str(refused)) from None


def echo_channel(channel: str) -> str:
    """A channel of one's own on the slot of another."""
    return f"{{{channel}}}:echo:{uuid.uuid4().hex}"


def _fields(info: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in info.decode("utf-8", "replace").splitlines() if ":" in line)
