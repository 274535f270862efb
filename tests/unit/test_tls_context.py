"""Contexts to the stores: never less than TLS 1.2, and of the files as they are now."""

import asyncio
import logging
import ssl
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.tls_front import Certificate, certificate_for
from tidegate.settings import Settings
from tidegate.settings.groups import DatabaseSettings, RedisSettings
from tidegate.storage.redis import open_redis, redis_address
from tidegate.storage.tls import Tls, TlsFilesUnusable, database_tls


@pytest.fixture
def pair(tmp_path: Path) -> Certificate:
    return certificate_for("tidegate", tmp_path)


def _of_debian() -> ssl.SSLContext:
    """As Python 3.11.2 on Debian 12 makes it."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    return context


def _stricter() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def test_a_system_that_allows_less_is_not_followed_and_one_that_asks_for_more_is() -> None:
    assert Tls(_of_debian).get().minimum_version == ssl.TLSVersion.TLSv1_2
    assert Tls(_stricter).get().minimum_version == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize("mode", ["verify", "require"])
def test_postgresql_is_spoken_to_by_1_2_at_least(mode: str, pair: Certificate) -> None:
    tls = database_tls(
        DatabaseSettings.model_validate({"tls": mode, "cert_file": pair.path, "key_file": pair.key_path})
    )
    assert isinstance(tls, Tls)
    context = tls.get()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (
        (ssl.CERT_REQUIRED, True) if mode == "verify" else (ssl.CERT_NONE, False)
    )


def test_redis_is_spoken_to_by_1_2_at_least_by_every_client() -> None:
    settings = Settings(environment="test", redis=RedisSettings.model_validate({"url": "rediss://cache"}))
    client, address = open_redis(settings), redis_address(settings)
    assert isinstance(client, Redis)
    assert address is not None
    for tls in (client.connection_pool.connection_kwargs["address"].tls, address.tls):
        assert isinstance(tls, Tls)
        context = tls.get()
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


async def test_a_context_is_made_anew_where_a_file_changed_and_only_there(tmp_path: Path, pair: Certificate) -> None:
    tls = Tls(lambda: ssl.create_default_context(cafile=str(pair.path)), [pair.path])
    first = await tls.current()
    assert await tls.current() is first
    (tmp_path / "other").mkdir()
    certificate_for("tidegate", tmp_path / "other").path.replace(pair.path)
    second = await tls.current()
    assert second is not first
    assert first.get_ca_certs() != second.get_ca_certs()


async def test_files_that_cannot_be_used_are_told_once_by_their_names(
    pair: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    tls = Tls(lambda: ssl.create_default_context(cafile=str(pair.path)), [pair.path])
    held = pair.path.read_bytes()
    for _ in range(2):
        pair.path.write_bytes(b"nothing of the kind")
        with pytest.raises(TlsFilesUnusable, match=str(pair.path)):
            await tls.current()
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    pair.path.write_bytes(held)
    asked = await asyncio.gather(*(tls.current() for _ in range(4)))
    assert all(context.get_ca_certs() for context in asked)
    pair.path.unlink()
    with pytest.raises(TlsFilesUnusable, match="No such file"):
        await tls.current()
