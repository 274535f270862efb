"""How many workers a server runs, and how many database connections each of them may hold.

replicas × workers × (size + overflow) × 2 ≤ max_connections − reserved: a replacement runs old and new workers at
once. At most 5 + 5 a worker, since others share the database server. A sum that cannot be met stops the start.
"""

from dataclasses import dataclass

from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings

LARGEST_SIZE = 5
LARGEST_OVERFLOW = 5
# One to write the ledger while another reads: a worker with a single connection waits on itself.
LEAST = 2


@dataclass(frozen=True, slots=True)
class Pool:
    """One worker's share: `size` connections kept, `overflow` more under load."""

    size: int
    overflow: int


def worker_count(settings: Settings, cpus: int) -> int:
    """The number that was set; `auto` is 2 × CPU + 1 in production and 1 elsewhere."""
    if settings.server.workers != "auto":
        return settings.server.workers
    return 2 * cpus + 1 if settings.in_production else 1


def pool_for(settings: Settings, *, workers: int, max_connections: int, reserved: int) -> Pool:
    """The largest pool that fits, `size` before `overflow`.

    `reserved` are the connections that the database keeps for superusers. Raises `StartRefused` where fewer than
    2 connections are left to a worker.
    """
    replicas = settings.database.max_replicas
    share = (max_connections - reserved) // (2 * replicas * workers)
    if share < LEAST:
        raise StartRefused(
            f"the database allows too few connections: {max_connections} (max_connections) - {reserved} (reserved)"
            f" leaves {max(0, share)} to each of {replicas} x {workers} workers (replicas x workers, twice while"
            f" they are replaced), which need at least {LEAST}: raise max_connections to"
            f" {2 * replicas * workers * LEAST + reserved} or more, or lower TIDEGATE_SERVER__WORKERS or"
            " TIDEGATE_DATABASE__MAX_REPLICAS"
        )
    share = min(share, LARGEST_SIZE + LARGEST_OVERFLOW)
    size = min(LARGEST_SIZE, share)
    return Pool(size=size, overflow=share - size)
