"""Redis, opened where it is configured: one bounded pool a process, every wait of it bounded.

A command is sent once. Steps of money and limits must not be done twice because an answer was lost, so a lost
connection is an error that the caller's degraded mode answers; a connection that died while it lay idle is noticed
before it is used. Keys carry the deployment's prefix and a hash tag, so that each step falls on one slot of a cluster.
"""

import functools
import uuid

import anyio
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from tidegate.settings import Settings

MOST_CONNECTIONS = 16
CONNECT_TIMEOUT_S = 1.0
SOCKET_TIMEOUT_S = 1.0
# How long a command waits for a connection of the pool.
POOL_TIMEOUT_S = 1.0
IDLE_CHECK_S = 15
_CLOSE_TIMEOUT_S = 2.0

DEPLOYMENT_TAG = "d"


def open_redis(settings: Settings) -> Redis | None:
    """The client of this process, None where no Redis is configured. It connects with its first command."""
    if settings.redis.url is None:
        return None
    pool = BlockingConnectionPool.from_url(
        settings.redis.url.get_secret_value(),
        max_connections=MOST_CONNECTIONS,
        timeout=POOL_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        health_check_interval=IDLE_CHECK_S,
        retry=Retry(NoBackoff(), 0),
        # Where these are on (the default), a pooled connection that the server has closed is used all the same.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        client_name=settings.redis.key_prefix,
    )
    return Redis.from_pool(pool)


async def close_redis(client: Redis) -> None:
    """Closes every connection, in at most two seconds, cancelled or not."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_TIMEOUT_S):
        await client.aclose()


async def ping(client: Redis) -> None:
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
