"""How many workers a server runs, and how many connections to the database and to Redis each of them may hold.

replicas × workers × (size + overflow) × 2 ≤ max_connections − reserved: a replacement runs old and new workers at
once. At most 5 + 5 a worker, since others share the database server. Redis likewise: its pool and the connections that
a worker has beside it, by `maxclients`. A sum that cannot be met stops the start.
"""

from dataclasses import dataclass

from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings
from tidegate.storage import changes, redis

LARGEST_SIZE = 5
LARGEST_OVERFLOW = 5
# One to write the ledger while another reads: a worker with a single connection waits on itself.
LEAST = 2
LEAST_REDIS = 2
# The gate's two, on which it asks and on which it hears, and what is told and heard of changes.
BESIDE_REDIS_POOL = 2 + changes.MOST_CONNECTIONS
# Of a cluster, to one node: the gate's two, the plain commands', two of changes, and one that asks for the map.
TO_EACH_NODE = 6
# For commands and whoever watches the server.
RESERVED_REDIS = 8
# While workers are replaced, old and new ones run.
_GENERATIONS = 2


@dataclass(frozen=True, slots=True)
class Pool:
    """One worker's share: `size` connections to the database kept, `overflow` more under load; `redis` to Redis."""

    size: int = LARGEST_SIZE
    overflow: int = LARGEST_OVERFLOW
    redis: int = redis.MOST_CONNECTIONS


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker may hold of a server's connections, and the arithmetic that says so."""

    connections: int
    arithmetic: str


def worker_count(settings: Settings, cpus: int) -> int:
    """The number that was set; `auto` is 2 × CPU + 1 in production and 1 elsewhere."""
    if settings.server.workers != "auto":
        return settings.server.workers
    return 2 * cpus + 1 if settings.in_production else 1


def database_share(settings: Settings, *, workers: int, max_connections: int, reserved: int) -> Share:
    """The largest that fits. `reserved` are the connections that the database keeps for superusers.

    Raises `StartRefused` where fewer than 2 connections are left to a worker.
    """
    replicas = settings.database.max_replicas
    share = (max_connections - reserved) // (_GENERATIONS * replicas * workers)
    if share < LEAST:
        raise StartRefused(
            f"the database allows too few connections: {max_connections} (max_connections) - {reserved} (reserved)"
            f" leaves {max(0, share)} to each of {replicas} x {workers} workers (replicas x workers, twice while"
            f" they are replaced), which need at least {LEAST}: raise max_connections to"
            f" {_GENERATIONS * replicas * workers * LEAST + reserved} or more, or lower TIDEGATE_SERVER__WORKERS or"
            " TIDEGATE_DATABASE__MAX_REPLICAS"
        )
    size, overflow = split(min(share, LARGEST_SIZE + LARGEST_OVERFLOW))
    told = f"{_sum(settings, workers, size, overflow)} of {max_connections} (max_connections) - {reserved} (reserved)"
    return Share(size + overflow, told)


def pooled_share(settings: Settings, *, workers: int) -> Share:
    """Behind a pooler, which keeps PostgreSQL's bound itself; nobody but its own console tells how many it lets in."""
    told = (
        f"{_sum(settings, workers, LARGEST_SIZE, LARGEST_OVERFLOW)} to the pooler, whose max_client_conn must allow it"
    )
    return Share(LARGEST_SIZE + LARGEST_OVERFLOW, told)


def redis_share(settings: Settings, *, workers: int, max_clients: int) -> Share:
    """The largest pool that fits beside a worker's other connections.

    Raises `StartRefused` where fewer than 2 connections are left to it.
    """
    replicas = settings.database.max_replicas
    share = (max_clients - RESERVED_REDIS) // (_GENERATIONS * replicas * workers) - BESIDE_REDIS_POOL
    if share < LEAST_REDIS:
        least = BESIDE_REDIS_POOL + LEAST_REDIS
        raise StartRefused(
            f"Redis allows too few connections: {max_clients} (maxclients) - {RESERVED_REDIS} (for commands) leaves"
            f" {max(0, share + BESIDE_REDIS_POOL)} to each of {replicas} x {workers} workers (replicas x workers, twice"
            f" while they are replaced), which need at least {least}: raise maxclients to"
            f" {_GENERATIONS * replicas * workers * least + RESERVED_REDIS} or more, or lower TIDEGATE_SERVER__WORKERS"
            " or TIDEGATE_DATABASE__MAX_REPLICAS"
        )
    share = min(share, redis.MOST_CONNECTIONS)
    told = _sum(settings, workers, share, BESIDE_REDIS_POOL)
    return Share(share, f"{told} of {max_clients} (maxclients) - {RESERVED_REDIS} (for commands)")


def cluster_share(settings: Settings, *, workers: int, max_clients: int) -> Share:
    """What a worker holds to one node of a cluster, which is always the same. `max_clients` is the least of theirs.

    Raises `StartRefused` where a node does not allow so many.
    """
    replicas = settings.database.max_replicas
    needed = _GENERATIONS * replicas * workers * TO_EACH_NODE + RESERVED_REDIS
    if needed > max_clients:
        raise StartRefused(
            f"a node of the Redis Cluster allows too few connections: {replicas} x {workers} workers (replicas x"
            f" workers, twice while they are replaced) hold up to {TO_EACH_NODE} to each node, and {RESERVED_REDIS} are"
            f" for commands: raise its maxclients from {max_clients} to {needed} or more, or lower"
            " TIDEGATE_SERVER__WORKERS or TIDEGATE_DATABASE__MAX_REPLICAS"
        )
    told = (
        f"{replicas} replicas x {workers} workers x {TO_EACH_NODE} x {_GENERATIONS} = {needed - RESERVED_REDIS} to each"
        f" node, of {max_clients} (maxclients) - {RESERVED_REDIS} (for commands)"
    )
    return Share(TO_EACH_NODE, told)


def split(connections: int) -> tuple[int, int]:
    """`size` before `overflow`."""
    size = min(LARGEST_SIZE, connections)
    return size, connections - size


def _sum(settings: Settings, workers: int, first: int, second: int) -> str:
    replicas = settings.database.max_replicas
    total = replicas * workers * (first + second) * _GENERATIONS
    return f"{replicas} replicas x {workers} workers x ({first} + {second}) x {_GENERATIONS} = {total}"
