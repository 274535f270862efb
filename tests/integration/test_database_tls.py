"""TLS to PostgreSQL by the settings: the certificate and its name are looked at, and nothing goes on in the clear."""

import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests.support.schema import bring_to_head
from tests.support.services import LOOPBACK
from tests.support.tls_front import Certificate, TlsFront, certificate_for, tls_front
from tidegate.cli.failures import failure_lines
from tidegate.cli.migrate import migrate_command
from tidegate.errors import Unavailable
from tidegate.settings.groups import DatabaseSettings
from tidegate.storage.database import Database
from tidegate.storage.database_login import database_login


def _through(front: TlsFront, url: str) -> str:
    location = make_url(url).set(host=LOOPBACK, port=front.port)
    return location.render_as_string(hide_password=False)


def _port(url: str) -> int:
    return make_url(url).port or 5432


async def _ask(url: str, **chosen: Any) -> int:
    settings = DatabaseSettings.model_validate({"url": url, **chosen})
    database = await Database.open(url, login=database_login(settings))
    try:
        async with database.session() as session:
            found: int = (await session.execute(text("SELECT 7"))).scalar_one()
            return found
    finally:
        await database.aclose()


@pytest.fixture
def own(tmp_path: Path) -> Certificate:
    return certificate_for(LOOPBACK, tmp_path)


async def test_a_certificate_that_is_trusted_and_names_the_host_is_taken(postgres_url: str, own: Certificate) -> None:
    async with tls_front(_port(postgres_url), own) as front:
        assert await _ask(_through(front, postgres_url), tls="verify", ca_file=own.path) == 7
        assert front.spoken == ["TLSv1.3"]


async def test_a_certificate_of_another_name_is_refused(postgres_url: str, tmp_path: Path) -> None:
    other = certificate_for("db.example.com", tmp_path)
    async with tls_front(_port(postgres_url), other) as front:
        with pytest.raises(Unavailable) as refused:
            await _ask(_through(front, postgres_url), tls="verify", ca_file=other.path)
        assert "IP address mismatch" in str(refused.value.__cause__)
        assert await _ask(_through(front, postgres_url), tls="require") == 7


@pytest.mark.parametrize("trusted", ["another authority", "the system's"])
async def test_a_certificate_of_another_authority_is_refused(
    postgres_url: str, own: Certificate, tmp_path: Path, trusted: str
) -> None:
    chosen: Mapping[str, Any] = {}
    if trusted == "another authority":
        chosen = {"ca_file": certificate_for("another.example.com", tmp_path).path}
    async with tls_front(_port(postgres_url), own) as front:
        with pytest.raises(Unavailable) as refused:
            await _ask(_through(front, postgres_url), tls="verify", **chosen)
        assert "certificate verify failed" in str(refused.value.__cause__)
        assert front.spoken == []


@pytest.mark.parametrize("tls", ["verify", "require"])
async def test_where_the_server_speaks_no_tls_nothing_is_said_in_the_clear(postgres_url: str, tls: str) -> None:
    async with tls_front(_port(postgres_url), None) as front:
        with pytest.raises(Unavailable):
            await _ask(_through(front, postgres_url), tls=tls)
        assert front.spoken == []


async def test_off_asks_for_none(postgres_url: str, own: Certificate) -> None:
    async with tls_front(_port(postgres_url), own) as front:
        assert await _ask(_through(front, postgres_url), tls="off") == 7
        assert front.spoken == [None]


async def test_migrate_speaks_it_too_and_says_what_is_not_trusted(
    postgres_url: str, own: Certificate, tmp_path: Path
) -> None:
    await bring_to_head(postgres_url)
    other = certificate_for("another.example.com", tmp_path)
    async with tls_front(_port(postgres_url), own) as front:
        answers = []
        for authority in (own, other):
            variables = {
                "TIDEGATE_DATABASE__URL": _through(front, postgres_url),
                "TIDEGATE_DATABASE__TLS": "verify",
                "TIDEGATE_DATABASE__CA_FILE": str(authority.path),
            }
            runner = CliRunner(env=variables)
            answers.append(await anyio.to_thread.run_sync(runner.invoke, migrate_command, ["--json"]))
            if authority is own:
                assert set(front.spoken) == {"TLSv1.3"}
                front.spoken.clear()
        assert front.spoken == []
    assert answers[0].exit_code == 0
    assert json.loads(answers[0].stdout)["pending"] == []
    refusal = answers[1].exception
    assert isinstance(refusal, ssl.SSLCertVerificationError)
    (line,) = failure_lines(refusal) or []
    assert "TIDEGATE_DATABASE__CA_FILE" in line
    assert "self-signed certificate" in line
