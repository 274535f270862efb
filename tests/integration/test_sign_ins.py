"""Signing in, refreshing and signing out over HTTP: what ends when, and what the audit trail says of it."""

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from pydantic import SecretStr

from tests.support.credentials import EMAIL, PASSWORD
from tests.support.sign_in_api import OTHER, SignInApi
from tests.support.waiting import eventually
from tidegate.settings.groups import RedisSettings
from tidegate.storage.changes import user_topic


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[SignInApi]:
    async with SignInApi.open(database_url, tmp_path) as api:
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str, tmp_path: Path) -> AsyncIterator[SignInApi]:
    async with SignInApi.open(sqlite_url, tmp_path) as api:
        yield api


def _refused(answer: httpx2.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    message: str = answer.json()["error"]["message"]
    return message


async def test_a_log_in_gives_tokens_that_are_refreshed_and_stored_by_nobody(api: SignInApi) -> None:
    first = await api.log_in()
    assert first.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (first["token_type"], first["expires_in"]) == ("bearer", 900)
    answer = await api.refresh(first)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    second = answer.json()
    assert second.keys() == first.keys()
    assert second["refresh_token"] != first["refresh_token"]
    # What was issued before the refresh lives on, to its own end.
    assert [await api.status_of(each) for each in (first, second)] == [200, 200]
    claims = [jwt.decode(each["access_token"], options={"verify_signature": False}) for each in (first, second)]
    assert claims[0]["sid"] == claims[1]["sid"]
    assert claims[0]["jti"] != claims[1]["jti"]


async def test_a_log_out_ends_access_and_refresh_at_once_and_no_other_sign_in(api: SignInApi) -> None:
    here, there = await api.log_in(), await api.log_in()
    assert [await api.status_of(each) for each in (here, there)] == [200, 200]
    api.told.clear()
    answer = await api.post("/logout", {"refresh_token": here["refresh_token"]})
    assert (answer.status_code, answer.content) == (204, b"")
    assert api.told == [user_topic(api.users[EMAIL])]
    assert [await api.status_of(each) for each in (here, there)] == [401, 200]
    assert "sign in again" in _refused(await api.refresh(here), 401, "invalid_token")
    assert (await api.refresh(there)).status_code == 200


@pytest.mark.parametrize("token", ["tgr_" + "A" * 43, "tgr_short", "x", "é", "tg_abcdefgh_" + "A" * 43])
async def test_a_token_that_nobody_was_given_refreshes_nothing_and_ends_nothing(
    on_sqlite: SignInApi, token: str
) -> None:
    tokens = await on_sqlite.log_in()
    message = _refused(await on_sqlite.post("/refresh", {"refresh_token": token}), 401, "invalid_token")
    assert token not in message or token == "x"
    on_sqlite.told.clear()
    assert (await on_sqlite.post("/logout", {"refresh_token": token})).status_code == 204
    assert on_sqlite.told == []
    assert await on_sqlite.status_of(tokens) == 200


@pytest.mark.parametrize("body", [{}, {"refresh_token": ""}, {"refresh_token": 7}, {"refresh_token": "x" * 513}])
@pytest.mark.parametrize("path", ["/refresh", "/logout"])
async def test_what_is_no_token_at_all_is_a_422_that_repeats_nothing(
    on_sqlite: SignInApi, path: str, body: dict[str, Any]
) -> None:
    answer = await on_sqlite.post(path, body)
    assert answer.status_code == 422
    assert "xxx" not in answer.text
    no_text = b'{"refresh_token": "tgr_\\ud800"}'
    headers = {"Content-Type": "application/json"}
    refused = await on_sqlite.client.post(f"/auth{path}", content=no_text, headers=headers)
    assert refused.status_code in {400, 422}


async def test_a_log_out_twice_and_by_a_used_token_is_one(api: SignInApi) -> None:
    first = await api.log_in()
    second = (await api.refresh(first)).json()
    for tokens in (first, first, second):
        assert (await api.post("/logout", {"refresh_token": tokens["refresh_token"]})).status_code == 204
    assert await api.status_of(second) == 401
    assert len(await api.events("account.signed_out")) == 1


async def test_a_log_out_everywhere_ends_all_of_one_user_alone(api: SignInApi) -> None:
    mine, hers = [await api.log_in() for _ in range(3)], await api.log_in(OTHER)
    for each in mine:
        assert await api.status_of(each) == 200
    answer = await api.post("/logout/everywhere", by=mine[0]["access_token"])
    assert (answer.status_code, answer.content) == (204, b"")
    assert [await api.status_of(each) for each in [*mine, hers]] == [401, 401, 401, 200]
    for each in mine:
        _refused(await api.refresh(each), 401, "invalid_token")
    assert await api.status_of(await api.log_in()) == 200


async def test_what_ends_in_one_worker_ends_in_the_others(
    database_url: str, tmp_path: Path, redis_url: str, redis_prefix: str
) -> None:
    redis = RedisSettings(url=SecretStr(redis_url), key_prefix=redis_prefix)
    async with (
        SignInApi.open(database_url, tmp_path / "one", redis=redis) as one,
        SignInApi.open(database_url, tmp_path / "two", redis=redis) as two,
    ):
        first, second = await one.log_in(), await one.log_in()
        renewed = (await two.refresh(first)).json()
        for tokens in (first, second, renewed):
            assert await two.status_of(tokens) == 200
        await one.post("/logout", {"refresh_token": renewed["refresh_token"]})

        async def is_out(tokens: dict[str, Any]) -> bool:
            return await two.status_of(tokens) == 401

        # Unless it hears of it, a worker goes by what it knows for 24 s.
        await eventually(lambda: is_out(renewed))
        assert await is_out(first)
        assert not await is_out(second)
        await one.post("/logout/everywhere", by=second["access_token"])
        await eventually(lambda: is_out(second))


async def test_a_user_sees_and_ends_their_own_sign_ins_alone(api: SignInApi) -> None:
    here, there, hers = await api.log_in(), await api.log_in(), await api.log_in(OTHER)
    await api.refresh(there)
    listed = (await api.get("/sign-ins", by=here["access_token"])).json()["data"]
    assert [each["is_current"] for each in listed] == [False, True]
    assert {each["method"] for each in listed} == {"password"}
    assert {each["client_address"] for each in listed} == {"192.0.2.7"}
    assert [each["last_used_at"] is None for each in listed] == [False, True]
    assert not any("tgr_" in str(each) or "hash" in str(each) for each in listed)
    (other,) = (await api.get("/sign-ins", by=hers["access_token"])).json()["data"]
    for id_ in (other["id"], str(uuid.uuid4())):
        _refused(await api.delete(f"/sign-ins/{id_}", by=here["access_token"]), 404, "not_found")
    assert await api.status_of(hers) == 200
    for _ in range(2):
        assert (await api.delete(f"/sign-ins/{listed[0]['id']}", by=here["access_token"])).status_code == 204
    assert [await api.status_of(each) for each in (here, there)] == [200, 401]
    assert len((await api.get("/sign-ins", by=here["access_token"])).json()["data"]) == 1
    assert len(await api.events("account.signed_out")) == 1


@pytest.mark.parametrize(("method", "path"), [("POST", "/logout/everywhere"), ("GET", "/sign-ins")])
async def test_what_is_a_users_own_needs_their_access_token(on_sqlite: SignInApi, method: str, path: str) -> None:
    _refused(await on_sqlite.client.request(method, f"/auth{path}"), 401, "missing_credentials")
    tokens = await on_sqlite.log_in()
    headers = {"Authorization": f"Bearer {tokens['refresh_token']}"}
    _refused(await on_sqlite.client.request(method, f"/auth{path}", headers=headers), 401, "invalid_token")


async def test_a_disabled_account_is_refreshed_no_more_and_nothing_of_it_comes_back(api: SignInApi) -> None:
    tokens = await api.log_in()
    await api.accounts.disable(EMAIL)
    message = _refused(await api.refresh(tokens), 401, "invalid_token")
    assert "ended" in message or "disabled" in message


async def test_log_ins_and_log_outs_are_in_the_audit_trail_and_no_secret_is(api: SignInApi) -> None:
    wrong = {"email": "Nobody@example.com", "password": PASSWORD + "!"}
    assert (await api.post("/login", wrong)).status_code == 401
    assert (await api.post("/login", {**wrong, "email": EMAIL})).status_code == 401
    tokens = await api.log_in()
    await api.post("/logout", {"refresh_token": tokens["refresh_token"]})
    again = await api.log_in()
    await api.post("/logout/everywhere", by=again["access_token"])
    refused = await api.events("account.sign_in_refused")
    assert [(each.subject, each.outcome, each.actor_kind) for each in refused] == [
        ("nobody@example.com", "refused", "nobody"),
        (EMAIL, "refused", "nobody"),
    ]
    # A known address is written down as an unknown one is: with nothing that had to be looked up.
    assert {(each.subject_id, each.workspace_id, str(each.details)) for each in refused} == {
        (None, refused[0].workspace_id, "{}")
    }
    done = await api.events("account.signed_in", "account.signed_out", "account.signed_out_everywhere")
    assert [each.action.removeprefix("account.") for each in done] == [
        "signed_in",
        "signed_out",
        "signed_in",
        "signed_out_everywhere",
    ]
    for each in done:
        assert (each.actor_kind, each.actor, each.actor_id) == ("user", EMAIL, api.users[EMAIL])
        assert (each.client_address, each.outcome) == ("192.0.2.7", "done")
        assert each.request_id
    for each in [*refused, *done]:
        text = str(vars(each))
        assert PASSWORD not in text
        assert "tgr_" not in text
        assert "eyJ" not in text


async def test_a_reuse_is_noticed_written_down_and_logged(api: SignInApi, caplog: pytest.LogCaptureFixture) -> None:
    first = await api.log_in()
    second = (await api.refresh(first)).json()
    third = (await api.refresh(second)).json()
    assert await api.status_of(third) == 200
    with caplog.at_level(logging.WARNING):
        message = _refused(await api.refresh(first), 401, "invalid_token")
    assert "used before" in message
    assert any("used again" in record.getMessage() for record in caplog.records)
    assert [await api.status_of(each) for each in (first, second, third)] == [401, 401, 401]
    _refused(await api.refresh(third), 401, "invalid_token")
    (event,) = await api.events("account.refresh_token_reused")
    assert (event.subject, event.outcome, event.client_address) == (EMAIL, "refused", "192.0.2.7")
    assert first["refresh_token"] not in caplog.text


async def test_two_tabs_that_refresh_at_once_are_both_still_signed_in(api: SignInApi) -> None:
    first = await api.log_in()
    answers = await asyncio.gather(*(api.refresh(first) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    for answer in answers:
        if answer.status_code == 409:
            assert "refresh_token" not in answer.text.replace("refresh token", "")
            _refused(answer, 409, "conflict")
    (won,) = [answer.json() for answer in answers if answer.status_code == 200]
    assert await api.status_of(won) == 200
    assert (await api.refresh(won)).status_code == 200
    assert not await api.events("account.refresh_token_reused")


async def test_refreshing_is_limited_by_the_token_and_says_so(on_sqlite: SignInApi) -> None:
    tokens = await on_sqlite.log_in()
    answers = [await on_sqlite.refresh(tokens) for _ in range(31)]
    assert answers[0].status_code == 200
    assert answers[0].headers["ratelimit-policy"] == '"refresh-address";q=300;w=900'
    refused = answers[-1]
    assert "for one token" in _refused(refused, 429, "rate_limit_exceeded")
    assert refused.headers["retry-after"]


async def test_an_access_token_of_before_sign_ins_is_refused(on_sqlite: SignInApi) -> None:
    tokens = await on_sqlite.log_in()
    header, payload, signature = tokens["access_token"].split(".")
    assert await on_sqlite.status_of(tokens) == 200
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert re.fullmatch(r"[0-9a-f-]{36}", claims["sid"])
    assert await on_sqlite.status_of({"access_token": f"{header}.{payload}.{signature[:-4]}AAAA"}) == 401


async def test_under_a_secret_no_key_is_published(on_sqlite: SignInApi) -> None:
    answer = await on_sqlite.client.get("/.well-known/jwks.json")
    assert (answer.status_code, answer.json()) == (200, {"keys": []})


async def test_under_eddsa_others_verify_by_the_published_key(sqlite_url: str, tmp_path: Path) -> None:
    async with SignInApi.open(sqlite_url, tmp_path, jwt_algorithm="EdDSA") as api:
        tokens = await api.log_in()
        assert await api.status_of(tokens) == 200
        answer = await api.client.get("/.well-known/jwks.json")
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert jwt.get_unverified_header(tokens["access_token"])["alg"] == "EdDSA"
    (key,) = jwt.PyJWKSet.from_dict(answer.json()).keys
    claims = jwt.decode(tokens["access_token"], key, algorithms=["EdDSA"], audience="tidegate", issuer="tidegate")
    assert claims["sub"] == str(api.users[EMAIL])
    assert answer.json()["keys"][0].keys() == {"kty", "crv", "x", "kid", "use", "alg"}
