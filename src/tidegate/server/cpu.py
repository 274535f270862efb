"""How many CPUs this process may really use: its affinity, bounded by its container's quota.

`os.cpu_count()` and `os.process_cpu_count()` ignore the quota. It stands in `cpu.max` (cgroup v2: each group up the
tree bounds its children) or in `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1). What cannot be read is no bound.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_V1_MOUNTS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def usable_cpus(root: Path = Path("/"), affinity: int | None = None) -> int:
    """At least 1. A quota that is not whole counts up: 1.5 CPUs are 2, as the JVM and Go count them.

    `root` is the file system to read, `affinity` the CPUs that the scheduler allows; both are for tests.
    """
    allowed = _affinity() if affinity is None else affinity
    quotas = [*_v2_quotas(root), *_v1_quotas(root)]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def _affinity() -> int:
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _v2_quotas(root: Path) -> Iterator[float]:
    for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
        for group in _groups(root, root / mount, ""):
            quota, _, period = _read(group / "cpu.max").partition(" ")
            yield from _ratio(quota, period)


def _v1_quotas(root: Path) -> Iterator[float]:
    for mount in _V1_MOUNTS:
        for group in _groups(root, root / "sys/fs/cgroup" / mount, "cpu"):
            yield from _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _groups(root: Path, mount: Path, controller: str) -> Iterator[Path]:
    """This process's group below `mount` and each above it.

    Without a cgroup namespace, a container's /proc names the host's path while the mount begins at its own group: a
    directory that does not exist here is passed over on the way up.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            place = PurePosixPath(path.removeprefix("/"))
            yield from (mount / group for group in (place, *place.parents))
            return
    yield mount


def _ratio(quota: str, period: str) -> Iterator[float]:
    try:
        allowed, of = int(quota), int(period)
    except ValueError:
        return
    if allowed > 0 and of > 0:
        yield allowed / of


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
