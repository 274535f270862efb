"""Credentials of Redis that change while they are used, and certificates, by each client that the gateway has."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.support.own_redis import OwnRedis
from tests.support.server import free_port
from tests.support.services import LOOPBACK, ServiceUnavailable
from tests.support.tls_front import Certificate, certificate_for
from tests.support.waiting import eventually
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.password_file import PasswordFile
from tidegate.storage.pipeline import PipelinedRedis
from tidegate.storage.redis import close_redis, open_redis, redis_address

FIRST, SECOND = "first-Kq7Zr2Xw9Lm4", "second-Tn8Vb3HcPd6"
USER = "rotating"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    try:
        with OwnRedis.started(tmp_path_factory.mktemp("redis")) as own:
            yield own
    except ServiceUnavailable as error:
        pytest.skip(str(error))


@contextmanager
def _as_admin(server: OwnRedis) -> Iterator[redis.Redis]:
    with redis.Redis(LOOPBACK, server.port) as admin:
        yield admin


def _takes(server: OwnRedis, password: str) -> None:
    with _as_admin(server) as admin:
        admin.acl_setuser(USER, enabled=True, reset=True, passwords=[f"+{password}"], keys=["*"], categories=["+@all"])


@pytest.fixture
def password(server: OwnRedis, tmp_path: Path) -> Path:
    """The file, with the password that the server takes."""
    path = tmp_path / "password"
    path.write_text(f"{FIRST}\n")
    _takes(server, FIRST)
    return path


def _settings(url: str, **chosen: Any) -> Settings:
    return Settings(environment="test", redis=RedisSettings.model_validate({"url": url, **chosen}))


Asks = Callable[[], Awaitable[bool]]


@asynccontextmanager
async def _pooled(settings: Settings) -> AsyncIterator[Asks]:
    """redis-py's client, with a new connection for each question."""
    client = open_redis(settings)
    assert isinstance(client, Redis)

    async def asks() -> bool:
        try:
            return bool(await client.ping())
        except RedisError:
            return False
        finally:
            await client.connection_pool.disconnect()

    try:
        yield asks
    finally:
        await close_redis(client)


@asynccontextmanager
async def _piped(settings: Settings) -> AsyncIterator[Asks]:
    """The gate's own connection, which is kept."""
    address = redis_address(settings)
    assert address is not None
    async with PipelinedRedis.running(address, client_name="of-credentials", scripts={}) as pipe:

        async def asks() -> bool:
            return pipe.is_connected

        yield asks


CLIENTS = pytest.mark.parametrize("client", [_pooled, _piped])


def _drop(server: OwnRedis) -> None:
    """As a restart or a proxy would: whoever was logged in has to do so again."""
    with _as_admin(server) as admin:
        for each in admin.client_list():
            if each["user"] == USER or each["name"] == "of-credentials":
                admin.client_kill_filter(_id=each["id"])


@CLIENTS
async def test_a_password_that_changed_is_used_by_the_next_connection(
    server: OwnRedis, password: Path, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://{USER}@{LOOPBACK}:{server.port}/0"
    async with client(_settings(url, password_file=password)) as asks:
        await eventually(asks)
        _takes(server, SECOND)
        password.write_text(SECOND)
        _drop(server)
        await eventually(asks)
        # Between the two changes.
        _takes(server, FIRST)
        _drop(server)
        await eventually(lambda: _is_not(asks))
        password.write_text(FIRST)
        await eventually(asks)
    assert FIRST not in caplog.text
    assert SECOND not in caplog.text


async def _is_not(asks: Asks) -> bool:
    return not await asks()


@CLIENTS
async def test_a_file_that_goes_is_a_failed_connection_and_told_by_its_name(
    server: OwnRedis, password: Path, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://{USER}@{LOOPBACK}:{server.port}/0"
    async with client(_settings(url, password_file=password)) as asks:
        await eventually(asks)
        password.unlink()
        _drop(server)

        async def is_told() -> list[str]:
            await asks()
            told = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
            return [line for line in told if "password_file_unusable" in line]

        await eventually(is_told)
        assert not await asks()
        unusable = await is_told()
        assert len(unusable) == 1
        assert "TIDEGATE_REDIS__PASSWORD_FILE" in unusable[0]
        assert str(password) in unusable[0]
        password.write_text(FIRST)
        await eventually(asks)


class _Hanging(PasswordFile):
    """As on a volume that hangs, until it is said to answer."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), "SETTING")
        self.answers = asyncio.Event()

    async def read(self) -> str:
        await self.answers.wait()
        return FIRST


@asynccontextmanager
async def _by_socket(server: OwnRedis, path: Path) -> AsyncIterator[None]:
    """The server behind a socket in the file system."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(65536):
            writer.write(some)
        writer.close()

    async def bridge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LOOPBACK, server.port)
        await asyncio.gather(pour(reader, back), pour(there, writer), return_exceptions=True)

    async with await asyncio.start_unix_server(bridge, path):
        yield


@pytest.mark.parametrize("how", ["redis", "unix"])
async def test_a_connection_that_did_not_log_in_is_not_kept(
    server: OwnRedis, password: Path, tmp_path: Path, how: str
) -> None:
    socket = tmp_path / "socket"
    url = f"redis://{USER}@{LOOPBACK}:{server.port}/0" if how == "redis" else f"unix://{USER}@{socket}"
    settings = _settings(url, password_file=password)
    with _as_admin(server) as admin:
        admin.acl_setuser("default", enabled=True, nopass=True, keys=["*"], categories=["+@all", "-@write"])
    async with _by_socket(server, socket):
        client = open_redis(settings)
        assert isinstance(client, Redis)
        options = client.connection_pool.connection_kwargs
        hanging = _Hanging()
        options["address"] = replace(options["address"], password_file=hanging)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.set("rotating", 1)
            hanging.answers.set()
            _takes(server, SECOND)
            with pytest.raises(RedisError):
                await client.set("rotating", 1)
            _takes(server, FIRST)
            # As this user, who may write: nobody in particular may not.
            assert await client.set("rotating", 1)
        finally:
            await close_redis(client)
            with _as_admin(server) as admin:
                admin.acl_setuser("default", enabled=True, nopass=True, keys=["*"], categories=["+@all"])


@CLIENTS
async def test_the_password_of_nobody_in_particular(server: OwnRedis, tmp_path: Path, client: Any) -> None:
    """`requirepass`, as most servers have it: the URL names no user."""
    path = tmp_path / "password"
    path.write_text(FIRST)
    with _as_admin(server) as admin:
        admin.config_set("requirepass", FIRST)
        try:
            async with client(_settings(f"redis://{LOOPBACK}:{server.port}/0", password_file=path)) as asks:
                await eventually(asks)
            async with client(_settings(f"redis://{LOOPBACK}:{server.port}/0")) as asks:
                assert not await asks()
        finally:
            admin.config_set("requirepass", "")


class Tls:
    """The server's port for TLS, which asks each client for the one certificate that it takes."""

    def __init__(self, server: OwnRedis, folder: Path) -> None:
        self.own, self.client = certificate_for(LOOPBACK, folder), certificate_for("tidegate", folder)
        self.port = free_port()
        with _as_admin(server) as admin:
            admin.config_set(
                "tls-cert-file", str(self.own.path), "tls-key-file", str(self.own.key_path),
                "tls-ca-cert-file", str(self.client.path), "tls-auth-clients", "yes", "tls-port", self.port,
            )  # fmt: skip

    @property
    def url(self) -> str:
        return f"rediss://{LOOPBACK}:{self.port}/0"


@pytest.fixture(scope="module")
def tls(server: OwnRedis, tmp_path_factory: pytest.TempPathFactory) -> Tls:
    try:
        return Tls(server, tmp_path_factory.mktemp("certificates"))
    except redis.ResponseError as error:
        pytest.skip(f"this Redis speaks no TLS: {error}")


def _pair(folder: Path, certificate: Certificate) -> dict[str, Path]:
    """The files of a client's certificate, which are replaced as an agent does it."""
    names = {"cert_file": certificate.path, "key_file": certificate.key_path}
    for name, path in names.items():
        (folder / f"{name}.new").write_bytes(path.read_bytes())
        (folder / f"{name}.new").rename(folder / name)
    return {name: folder / name for name in names}


@CLIENTS
async def test_who_has_the_certificate_comes_in_also_once_it_was_renewed(tls: Tls, tmp_path: Path, client: Any) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "shown").mkdir()
    pair = _pair(tmp_path / "shown", certificate_for("tidegate", tmp_path / "other"))
    async with client(_settings(tls.url, ca_file=tls.own.path)) as asks:
        assert not await asks()
    async with client(_settings(tls.url, ca_file=tls.own.path, **pair)) as asks:
        assert not await asks()
        _pair(tmp_path / "shown", tls.client)
        await eventually(asks)


@CLIENTS
async def test_the_url_may_name_the_certificate_too(tls: Tls, client: Any) -> None:
    named = f"ssl_certfile={tls.client.path}&ssl_keyfile={tls.client.key_path}&ssl_ca_certs={tls.own.path}"
    async with client(_settings(f"{tls.url}?{named}")) as asks:
        await eventually(asks)
