"""Redis, opened where it is configured: one bounded pool a process, every wait of it bounded.

A command is sent once. Steps of money and limits must not be done twice because an answer was lost, so a lost
connection is an error that the caller's degraded mode answers; a connection that died while it lay idle is noticed
before it is used. Keys carry the deployment's prefix and a hash tag, so that each step falls on one slot of a cluster.
"""

import functools
import uuid
from typing import Any, cast

import anyio
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.maint_notifications import MaintNotificationsConfig

from tidegate.settings import Settings
from tidegate.storage.cluster_client import ClusterClient
from tidegate.storage.password_file import PasswordFile
from tidegate.storage.pipeline_wire import Address

MOST_CONNECTIONS = 16
CONNECT_TIMEOUT_S = 1.0
SOCKET_TIMEOUT_S = 1.0
# How long a command waits for a connection of the pool.
POOL_TIMEOUT_S = 1.0
IDLE_CHECK_S = 15
_CLOSE_TIMEOUT_S = 2.0

DEPLOYMENT_TAG = "d"


RedisClient = Redis | ClusterClient
"""What the plain commands go through; of a cluster the few that are needed."""


def open_redis(settings: Settings, *, max_connections: int = MOST_CONNECTIONS) -> RedisClient | None:
    """The client of this process, None where no Redis is configured. It connects with its first command.

    To a cluster it holds one connection a master, whatever `max_connections` is.
    """
    url = settings.redis.trusting_url
    if url is None:
        return None
    if settings.redis.cluster:
        # What listens at a master is opened later, on a loop that serves.
        _driver()
        return ClusterClient(
            url,
            client_name=settings.redis.key_prefix,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            password_file=_password_file(settings),
        )
    return open_server(settings, url, max_connections=max_connections)


def open_server(settings: Settings, url: str, *, max_connections: int = MOST_CONNECTIONS) -> Redis:
    """The client of one server, at this URL: also of one master of a cluster."""
    address = Address.of(url, _password_file(settings))
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": POOL_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "health_check_interval": IDLE_CHECK_S,
        "retry": Retry(NoBackoff(), 0),
        # Where these are on (the default), a pooled connection that the server has closed is used all the same.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "client_name": settings.redis.key_prefix,
        "driver_info": _driver(),
        **cast("dict[str, Any]", parse_url(url)),
    }
    if address.tls is not None or address.password_file is not None:
        kind = options.get("connection_class", Connection)
        options |= {"connection_class": type("_Connection", (_AsOfNow, kind), {}), "address": address}
    return Redis.from_pool(BlockingConnectionPool(**options))


def redis_address(settings: Settings) -> Address | None:
    """Where the gate's own connections go, and as whom; None where no Redis is configured."""
    url = settings.redis.trusting_url
    return None if url is None else Address.of(url, _password_file(settings))


class _AsOfNow(AbstractConnection):
    """By the password and the context of now: redis-py keeps those that each connection object began with.

    Both are read before there is a socket: redis-py takes what is open for logged in, also where whoever opened it left
    while a file was read, and would use it for good.
    """

    def __init__(self, *, address: Address, **options: Any) -> None:
        super().__init__(**options)
        self._address = address

    async def _connect(self) -> None:
        self.password = await self._address.current_password()
        if self._address.tls is not None:
            cast("SSLConnection", self).ssl_context.context = await self._address.tls.current()
        await super()._connect()  # type: ignore[no-untyped-call, safe-super]


def _password_file(settings: Settings) -> PasswordFile | None:
    path = settings.redis.password_file
    return None if path is None else PasswordFile(path, "TIDEGATE_REDIS__PASSWORD_FILE")


@functools.cache
def _driver() -> DriverInfo:
    """Made once: left to itself each connection looks through the installed packages, 1.2 ms on the loop."""
    return DriverInfo()


async def close_redis(client: RedisClient) -> None:
    """Closes every connection, in at most two seconds, cancelled or not."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_TIMEOUT_S):
        await client.aclose()


async def ping(client: RedisClient) -> None:
    """One round trip. Raises `redis.RedisError` or `OSError` where there is none within the timeouts."""
    await client.ping()


def key(prefix: str, tag: str, *parts: str) -> str:
    """A key of Redis. `tag` is what must fall on one slot: `d`, `w:<workspace>` or `u:<upstream>`.

    >>> key("tidegate", "u:openai", "slots")
    'tidegate:{u:openai}:slots'
    """
    if not tag or "{" in tag or "}" in tag:
        raise ValueError(f"not a hash tag: {tag!r}")
    return ":".join((prefix, f"{{{tag}}}", *parts))


# Every request asks for it, and writing a UUID costs 1.5 µs.
@functools.lru_cache(maxsize=1024)
def workspace_tag(workspace_id: uuid.UUID) -> str:
    return f"w:{workspace_id}"


def upstream_tag(upstream: str) -> str:
    return f"u:{upstream}"
