"""Credentials of PostgreSQL that change while they are used: passwords in files, certificates, and what is told."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import asyncpg  # type: ignore[import-untyped]
import psutil
import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests.support.own_postgres import OwnPostgres
from tests.support.pgbouncer import pgbouncer
from tests.support.services import LOOPBACK, ServiceUnavailable
from tests.support.tls_front import Certificate, certificate_for
from tests.support.waiting import eventually
from tidegate.cli.main import root
from tidegate.errors import Unavailable
from tidegate.settings.groups import DatabaseSettings
from tidegate.storage.database import Database
from tidegate.storage.database_login import DatabaseLogin, LogInRefused, database_login
from tidegate.storage.password_file import PasswordFile

# The authority of clients is the certificate of the one client that may come in.
ACCESS = (
    f"host all rotating {LOOPBACK}/32 scram-sha-256",
    f"hostssl all certified {LOOPBACK}/32 cert",
    f"host all certified {LOOPBACK}/32 reject",
)
FIRST, SECOND = "first-Kq7Zr2Xw9Lm4", "second-Tn8Vb3HcPd6"


class Server:
    """A PostgreSQL that asks `rotating` for a password and `certified` for a certificate."""

    def __init__(self, postgres: OwnPostgres, own: Certificate, client: Certificate) -> None:
        self.own = own
        self.client = client
        self._place = f"{LOOPBACK}:{postgres.port}/postgres"

    def url(self, user: str) -> str:
        return f"postgresql+asyncpg://{user}@{self._place}"

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(f"postgresql://postgres@{self._place}")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def takes(self, password: str) -> None:
        await self.execute(f"ALTER ROLE rotating PASSWORD '{password}'")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("certificates")
    own, client = certificate_for(LOOPBACK, folder), certificate_for("certified", folder)
    files = {"server.crt": own.path, "server.key": own.key_path, "root.crt": client.path}
    try:
        with OwnPostgres.started(*ACCESS, files={name: path.read_bytes() for name, path in files.items()}) as postgres:
            server = Server(postgres, own, client)
            asyncio.run(server.execute("CREATE ROLE rotating LOGIN SUPERUSER; CREATE ROLE certified LOGIN"))
            yield server
    except ServiceUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
async def password(server: Server, tmp_path: Path) -> Path:
    """The file, with the password that the server takes."""
    path = tmp_path / "password"
    path.write_text(f"{FIRST}\n")
    await server.takes(FIRST)
    return path


@asynccontextmanager
async def _opened(url: str, **chosen: Any) -> AsyncIterator[Database]:
    async with _logging_in(url, database_login(DatabaseSettings.model_validate({"url": url, **chosen}))) as database:
        yield database


@asynccontextmanager
async def _logging_in(url: str, login: DatabaseLogin) -> AsyncIterator[Database]:
    """Leaves when the last socket is closed: after a refusal TLS says good-bye first."""
    database = await Database.open(url, login=login)
    try:
        yield database
    finally:
        await database.aclose()
        await eventually(lambda: not _sockets(make_url(url).port))


def _sockets(port: int | None) -> list[object]:
    connections = psutil.Process().net_connections(kind="tcp")
    return [each for each in connections if each.raddr[1:] == (port,)]


async def _who(database: Database) -> str:
    async with database.session() as session:
        found: str = (await session.execute(text("SELECT current_user"))).scalar_one()
        return found


async def test_a_password_that_changed_is_used_by_the_next_connection_and_the_standing_ones_stay(
    server: Server, password: Path
) -> None:
    async with _opened(server.url("rotating"), password_file=password) as database, database.session() as standing:
        assert (await standing.execute(text("SELECT 1"))).scalar_one() == 1
        await server.takes(SECOND)
        password.write_text(SECOND)
        # The pool's one connection is held above: this is a new one.
        assert await _who(database) == "rotating"
        assert (await standing.execute(text("SELECT 2"))).scalar_one() == 2


async def test_between_the_two_changes_it_is_refused_told_once_and_then_taken(
    server: Server, password: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with _opened(server.url("rotating"), password_file=password) as database:
        await server.takes(SECOND)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await _who(database)
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(told) == 1
        assert "database_refuses_log_in" in told[0]
        assert "28P01" in told[0]
        assert FIRST not in caplog.text
        password.write_text(SECOND)
        assert await _who(database) == "rotating"


async def test_what_was_refused_is_not_shown_again_at_once(server: Server, password: Path) -> None:
    url = make_url(server.url("rotating"))
    place = {"host": url.host, "port": url.port, "user": url.username, "database": url.database, "ssl": False}
    login = DatabaseLogin(password=PasswordFile(password, "SETTING"))
    password.write_text(SECOND)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await login.connect(**place)
    refused = await asyncio.gather(*(login.connect(**place) for _ in range(20)), return_exceptions=True)
    assert {type(each) for each in refused} == {LogInRefused}
    # The file says something else: at once. The server takes what it says by now: in a moment.
    password.write_text(FIRST)
    await (await login.connect(**place)).close()
    password.write_text(SECOND)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await login.connect(**place)
    await server.takes(SECOND)

    async def comes_in() -> bool:
        try:
            await (await login.connect(**place)).close()
        except LogInRefused:
            return False
        return True

    await eventually(comes_in)


async def test_a_pooler_that_refuses_is_told_of_once_and_asked_again_with_what_the_file_says_then(
    server: Server, password: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pgbouncer(server.url("postgres"), pool_size=1, users={"rotating": FIRST}) as pooled_url:
        url = pooled_url.replace("postgres@", "rotating@")
        chosen = {"url": url, "pooler": "transaction", "tls": "off", "password_file": password}
        login = database_login(DatabaseSettings.model_validate(chosen))
        password.write_text(SECOND)
        database = await Database.open(url, login=login, pooler="transaction")
        try:
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await _who(database)
            told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(told) == 1
            assert "database_refuses_log_in" in told[0]
            password.write_text(FIRST)
            assert await _who(database) == "postgres"
        finally:
            await database.aclose()


async def test_files_count_in_the_time_that_a_connection_has(server: Server) -> None:
    login = DatabaseLogin(password=_Hanging(Path("/nowhere"), "SETTING"))
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await login.connect(timeout=0.05)


class _Hanging(PasswordFile):
    async def read(self) -> str:
        await asyncio.Event().wait()
        return ""


class _Changing(PasswordFile):
    """Says something else each time that it is read."""

    def __init__(self, *says: str) -> None:
        super().__init__(Path("/nowhere"), "SETTING")
        self._says = list(says)

    async def read(self) -> str:
        return self._says.pop(0)


async def test_a_log_in_that_falls_into_a_change_is_tried_again_with_what_the_file_says_then(
    server: Server, password: Path
) -> None:
    for says, comes_in in (((SECOND, FIRST), True), ((SECOND, SECOND, FIRST), False)):
        async with _logging_in(server.url("rotating"), DatabaseLogin(password=_Changing(*says))) as database:
            if comes_in:
                assert await _who(database) == "rotating"
            else:
                with pytest.raises(Unavailable):
                    await _who(database)


@pytest.mark.parametrize("fault", ["missing", "empty", "a directory"])
async def test_a_file_that_goes_is_a_failed_connection_and_told_by_its_name(
    server: Server, password: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    async with _opened(server.url("rotating"), password_file=password) as database:
        password.unlink()
        if fault == "empty":
            password.write_text("\n")
        elif fault == "a directory":
            password.mkdir()
        for _ in range(3):
            with pytest.raises(Unavailable):
                await _who(database)
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(told) == 1
        assert "TIDEGATE_DATABASE__PASSWORD_FILE" in told[0]
        assert str(password) in told[0]
        if fault == "a directory":
            password.rmdir()
        password.write_text(FIRST)
        assert await _who(database) == "rotating"


async def test_migrate_and_the_commands_log_in_by_it_too(server: Server, password: Path, tmp_path: Path) -> None:
    await server.execute("CREATE DATABASE of_commands OWNER rotating")
    url = server.url("rotating").replace("/postgres", "/of_commands")
    variables = {
        "TIDEGATE_ENVIRONMENT": "test",
        "TIDEGATE_DATA_DIR": str(tmp_path / "var"),
        "TIDEGATE_DATABASE__URL": url,
        "TIDEGATE_DATABASE__PASSWORD_FILE": str(password),
        "TIDEGATE_DATABASE__TLS": "off",
    }
    answers = []
    for arguments in (["migrate", "--json"], ["migrate", "--check", "--json"], ["workspaces", "list", "--json"]):
        runner = CliRunner(env=variables)
        answers.append(await anyio.to_thread.run_sync(runner.invoke, root, arguments))
        assert answers[-1].exit_code == 0, answers[-1].output
    assert json.loads(answers[0].stdout)["applied"]
    assert json.loads(answers[1].stdout)["pending"] == []
    password.write_text("wrong")
    refusal = await anyio.to_thread.run_sync(CliRunner(env=variables).invoke, root, ["migrate", "--check"])
    assert refusal.exit_code == 1
    assert "wrong" not in refusal.output


def _pair(folder: Path, certificate: Certificate) -> dict[str, Path]:
    """The files of a client's certificate, which are replaced as an agent does it."""
    names = {"cert_file": certificate.path, "key_file": certificate.key_path}
    for name, path in names.items():
        (folder / f"{name}.new").write_bytes(path.read_bytes())
        (folder / f"{name}.new").rename(folder / name)
    return {name: folder / name for name in names}


@pytest.mark.parametrize("tls", ["verify", "require"])
async def test_who_has_the_certificate_comes_in_without_a_password(server: Server, tmp_path: Path, tls: str) -> None:
    authority = {"ca_file": server.own.path} if tls == "verify" else {}
    pair = _pair(tmp_path, server.client)
    async with _opened(server.url("certified"), tls=tls, **authority, **pair) as database:
        assert await _who(database) == "certified"
    async with _opened(server.url("certified"), tls=tls, **authority) as database:
        with pytest.raises(Unavailable):
            await _who(database)


async def test_a_certificate_that_was_renewed_is_shown_by_the_next_connection(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "shown").mkdir()
    pair = _pair(tmp_path / "shown", certificate_for("certified", tmp_path / "old"))
    chosen = {"tls": "verify", "ca_file": server.own.path, **pair}
    async with _opened(server.url("certified"), **chosen) as database:
        with pytest.raises(Unavailable):
            await _who(database)
        _pair(tmp_path / "shown", server.client)
        assert await _who(database) == "certified"
        await database.engine.dispose()
        caplog.clear()
        pair["key_file"].unlink()
        for _ in range(2):
            with pytest.raises(Unavailable):
                await _who(database)
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(told) == 1
        assert str(pair["key_file"]) in told[0]
