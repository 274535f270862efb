"""What the machine says: a process tree's CPU time and memory, where processes run, and what was measured on what."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PACKAGES = ("tidegate", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "httpx2", "sqlalchemy", "pydantic")


@dataclass(frozen=True)
class Cores:
    """Which cores the subject runs on, and which what drives it. The same list twice where there is only one core."""

    subject: tuple[int, ...]
    others: tuple[int, ...]


def split_cores() -> Cores | None:
    """One core for the subject and the rest for upstream, load and runner; None where processes cannot be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return Cores((cores[0],), tuple(cores[1:] or cores))


def pin(processes: Sequence[psutil.Process], cores: Sequence[int]) -> None:
    """Holds every thread of these processes to these cores; what they start later inherits it."""
    for process in processes:
        with suppress(psutil.Error):
            for thread in process.threads():
                with suppress(OSError):
                    os.sched_setaffinity(thread.id, cores)


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """User and system time of these processes so far, all their threads together."""
    return sum(_scheduled_s(process.pid) or _accounted_s(process) for process in processes)


def _scheduled_s(pid: int) -> float | None:
    """The scheduler's own count, in nanoseconds; the usual one comes in steps of 10 ms."""
    try:
        files = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(file.read_text("ascii").split()[0]) for file in files) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def _accounted_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def rss_mb(processes: Sequence[psutil.Process]) -> float:
    """Resident memory of these processes, shared pages counted once for each."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 1024 / 1024


def busy_share(seconds: float = 0.5) -> float:
    """The share of the machine's CPU time that others use now, from 0 to 1: what a run's numbers are worth."""
    before = psutil.cpu_times()
    time.sleep(seconds)
    after = psutil.cpu_times()
    idle = after.idle - before.idle
    total = sum(after) - sum(before)
    return max(0.0, 1 - idle / total) if total else 0.0


def speed_us() -> float:
    """CPU of 1,000 additions in Python (µs), the least of many: how fast this machine is now, others' load included."""

    def once() -> float:
        total, began = 0, time.thread_time()
        for n in range(1000):
            total += n
        return time.thread_time() - began

    return min(once() for _ in range(500)) * 1e6


def facts() -> dict[str, object]:
    """The machine and the versions, as the result file records them."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1024**3, 1),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10, check=False
        )
        return asked.stdout.strip() or None
    return None
