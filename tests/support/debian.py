"""Programs from Debian's packages, unpacked into a cache and never installed: nginx, Prometheus, PgBouncer.

    pgbouncer = debian_program("pgbouncer", packages=("pgbouncer", "libevent-2.1-7", "libc-ares2"))
    subprocess.Popen([pgbouncer.path, "…"], env=pgbouncer.environ)

What the machine has installed is taken as it is. Else the packages, libraries that it may lack among them, are fetched
by `apt-get download`, once for all test runs. Where that cannot be, a test is skipped, but in CI it fails.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_FETCH_BOUND_S = 180
_PLACES = ("usr/sbin", "usr/bin", "usr/local/bin")


@dataclass(frozen=True, slots=True)
class Program:
    """`environ` is this process's with the libraries that came with the program; `root` is where it was unpacked."""

    path: str
    environ: Mapping[str, str]
    root: Path


def debian_program(name: str, *, packages: Sequence[str]) -> Program:
    """The program `name`: the machine's, or what `packages` hold."""
    installed = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if installed is not None:
        return Program(installed, dict(os.environ), Path("/"))
    root = debian_files(*packages)
    path = next((root / place / name for place in _PLACES if (root / place / name).is_file()), None)
    assert path is not None, f"{packages} hold no {name}"
    return Program(str(path), _environ_of(root), root)


def debian_files(*packages: str) -> Path:
    """The folder where all of `packages` are unpacked: `usr/lib/…`, `usr/bin/…`."""
    try:
        return _unpacked(packages)
    except (OSError, subprocess.SubprocessError) as error:
        told = f"{packages[0]} is neither installed nor to be had from Debian's packages ({error}): install it"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)


def _unpacked(packages: Sequence[str]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate-tests" / "debian"
    root = cache / "-".join(packages)
    cache.mkdir(parents=True, exist_ok=True)
    with _held(cache / "lock"):
        if not root.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                fresh = Path(folder) / "root"
                fresh.mkdir()
                _fetch(packages, Path(folder), fresh)
                fresh.rename(root)
    return root


def _fetch(packages: Sequence[str], folder: Path, root: Path) -> None:
    _run(["apt-get", "download", *packages], folder)
    for archive in folder.glob("*.deb"):
        _run(["dpkg-deb", "-x", archive.name, str(root)], folder)
        archive.unlink()


def _environ_of(root: Path) -> dict[str, str]:
    libraries = [str(folder) for folder in (root / "usr/lib").glob("*-linux-gnu*")] + [str(root / "usr/lib")]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def _run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_FETCH_BOUND_S)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
