"""Files of credentials in the settings: what cannot be used stops the start by its name, and tells no secret."""

import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError
from redis.asyncio import Redis

from tests.support.tls_front import Certificate, certificate_for
from tidegate.settings import Settings, setting_advice
from tidegate.settings.rules import production_advice
from tidegate.storage.cluster_client import ClusterClient
from tidegate.storage.redis import open_redis, redis_address

POSTGRESQL = "postgresql+asyncpg://u@127.0.0.1/x"
WORD = "Kq7Zr2Xw9Lm4"


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{WORD}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Certificate:
    return certificate_for("tidegate", tmp_path)


def _faults(group: str, **values: Any) -> list[tuple[tuple[int | str, ...], str]]:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"environment": "test", group: values})
    assert WORD not in str(refused.value)
    return [(fault["loc"], fault["msg"]) for fault in refused.value.errors()]


@pytest.mark.parametrize(("group", "url"), [("database", POSTGRESQL), ("redis", "redis://cache")])
@pytest.mark.parametrize("fault", ["missing", "empty", "a directory", "a pipe", "no text", "endless", "closed"])
def test_a_password_file_that_cannot_be_used_stops_the_start(tmp_path: Path, group: str, url: str, fault: str) -> None:
    path = tmp_path / "password"
    if fault == "empty":
        path.write_text(" \n")
    elif fault == "a directory":
        path.mkdir()
    elif fault == "a pipe":
        os.mkfifo(path)
    elif fault == "endless":
        # It has no blocks on the disk.
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif fault == "no text":
        path.write_bytes(b"\xff\xfe\xff")
    elif fault == "closed":
        # Below what is no directory nobody reads, root neither.
        path = Path("/dev/null/password")
    ((place, told),) = _faults(group, url=url, password_file=path)
    assert place == (group, "password_file")
    assert str(path) in told


@pytest.mark.parametrize(
    ("group", "url", "told"),
    [
        ("database", f"postgresql+asyncpg://u:{WORD}@h/x", "TIDEGATE_DATABASE__URL has a password too"),
        ("database", f"postgresql+asyncpg://u@h/x?password={WORD}", "TIDEGATE_DATABASE__URL has a password too"),
        ("database", "sqlite+aiosqlite:///x.db", "TIDEGATE_DATABASE__URL to be PostgreSQL's"),
        ("database", None, "TIDEGATE_DATABASE__URL to be PostgreSQL's"),
        ("redis", f"redis://:{WORD}@h", "TIDEGATE_REDIS__URL has a password too"),
        ("redis", f"redis://h?password={WORD}", "TIDEGATE_REDIS__URL has a password too"),
        ("redis", None, "needs TIDEGATE_REDIS__URL"),
    ],
)
def test_a_password_is_given_once(password: Path, group: str, url: str | None, told: str) -> None:
    ((place, message),) = _faults(group, url=url, password_file=password)
    assert place == (group, "password_file")
    assert told in message


@pytest.mark.parametrize(
    ("group", "given"),
    [("database", {"url": POSTGRESQL, "tls": "verify"}), ("redis", {"url": "rediss://cache"})],
)
def test_a_certificate_has_its_own_key_and_no_passphrase(
    tmp_path: Path, pair: Certificate, group: str, given: dict[str, str]
) -> None:
    (tmp_path / "other").mkdir()
    other = certificate_for("other", tmp_path / "other")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(pair.key_path.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"word")))
    for values, place, told in (
        ({"cert_file": pair.path}, (group,), "given together"),
        ({"key_file": pair.key_path}, (group,), "given together"),
        ({"cert_file": pair.path, "key_file": other.key_path}, (group, "key_file"), "do not belong together"),
        ({"cert_file": pair.path, "key_file": pair.path}, (group, "key_file"), "PEM's form"),
        ({"cert_file": pair.path, "key_file": tmp_path / "none"}, (group, "key_file"), "cannot be read"),
        ({"cert_file": pair.path, "key_file": locked}, (group, "key_file"), "passphrase"),
    ):
        assert [(loc, told in message) for loc, message in _faults(group, **given, **values)] == [(place, True)]


@pytest.mark.parametrize(
    ("group", "given"),
    [
        ("database", {"url": POSTGRESQL}),
        ("database", {"url": POSTGRESQL, "tls": "off"}),
        ("redis", {"url": "redis://h"}),
    ],
)
def test_a_certificate_that_nobody_would_be_shown_is_refused(
    pair: Certificate, group: str, given: dict[str, str]
) -> None:
    faults = _faults(group, **given, cert_file=pair.path, key_file=pair.key_path)
    assert [place for place, _ in faults] == [(group, "cert_file")]
    assert "nobody is shown it without TLS" in faults[0][1]


@pytest.mark.parametrize(
    ("url", "who"),
    [("redis://u%40x@cache/1", "u@x"), ("redis://cache", None), ("unix://u@/run/redis.sock", "u")],
)
async def test_every_client_of_redis_logs_in_by_the_file(password: Path, url: str, who: str | None) -> None:
    settings = Settings.model_validate({"environment": "test", "redis": {"url": url, "password_file": password}})
    address, client = redis_address(settings), open_redis(settings)
    assert address is not None
    log_in = (WORD,) if who is None else (who, WORD)
    assert (await address.greeting("me"))[0] == ("AUTH", *log_in)
    assert isinstance(client, Redis)
    options = client.connection_pool.connection_kwargs
    assert (options.get("username"), await options["address"].current_password()) == (who, WORD)
    client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    assert WORD not in repr((address, settings, client))


async def test_every_node_of_a_cluster_is_logged_in_to_by_it(password: Path) -> None:
    given = {"url": "redis://u@cache", "password_file": password, "cluster": True}
    client = open_redis(Settings.model_validate({"environment": "test", "redis": given}))
    assert isinstance(client, ClusterClient)
    # Of any other node it is a copy.
    assert (await client._cluster._seed.greeting("me"))[0] == ("AUTH", "u", WORD)


def test_files_that_others_may_read_are_worth_a_warning(password: Path) -> None:
    settings = Settings(environment="test")
    environ = {"TIDEGATE_REDIS__PASSWORD_FILE": str(password), "TIDEGATE_DATABASE__KEY_FILE": str(password)}
    assert setting_advice(settings, environ) == []
    password.chmod(0o644)
    assert [line.split(": ")[0] for line in setting_advice(settings, environ)] == sorted(environ)


def test_a_url_without_a_password_is_no_fault_where_a_file_has_it(password: Path) -> None:
    def advice(**more: Any) -> list[str]:
        given = {"url": POSTGRESQL, **more}
        return production_advice(Settings.model_validate({"environment": "production", "database": given}))

    assert [line.split(": ")[0] for line in advice()] == ["TIDEGATE_DATABASE__URL"]
    assert advice(password_file=password) == []
