"""Whose end users and tags count: keys that an admin made trusted, and none else, from the request to the sums."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import func, select

from tests.integration.test_keys_cli import Shell
from tests.support.caller import CHAT
from tests.support.keys_api import Json, KeysApi
from tests.support.ledger_entries import an_entry
from tests.support.schema import bring_to_head
from tests.support.waiting import eventually
from tests.unit.limits import a_limit
from tidegate.ledger.entry import utc_now
from tidegate.ledger.models import LedgerEntry
from tidegate.ledger.store import LedgerStore
from tidegate.ledger.sums import DatabaseSums

ZOE: Json = {"X-Tidegate-End-User": "zoe"}
BEN: Json = {"X-Tidegate-End-User": "ben"}
SEARCH: Json = {"X-Tidegate-Tags": "lang=de,team=search"}
SHOP: Json = {"X-Tidegate-Tags": "team=shop"}
OF_EACH_END_USER: Json = {"scope": "end_user"}
OF_A_TAG: Json = {"scope": "tag", "subject": "team=search"}
BOTH_SCOPES = [(OF_EACH_END_USER, ZOE, BEN), (OF_A_TAG, SEARCH, SHOP)]
ADMIN_ALONE = "Only an admin who is signed in says whose end users and tags are trusted"


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(database_url, tmp_path) as api:
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(sqlite_url, tmp_path) as api:
        yield api


async def make_limit(api: KeysApi, **limit: object) -> None:
    """Two requests, of what `limit` says."""
    answer = await api.call("POST", at="/api/limits", json={"meter": "requests", "amount": 2} | limit)
    assert answer.status_code == 201, answer.text


async def ask(api: KeysApi, secret: str, attribution: Json) -> httpx2.Response:
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
    return await api.client.post(CHAT, headers={"Authorization": f"Bearer {secret}"} | attribution, json=body)


async def statuses(api: KeysApi, secret: str, *attributions: Json) -> list[int]:
    return [(await ask(api, secret, one)).status_code for one in attributions]


@pytest.mark.parametrize(("limit", "one", "another"), BOTH_SCOPES, ids=["end_user", "tag"])
async def test_limits_of_end_users_and_tags_hold_whom_a_trusted_key_names(
    api: KeysApi, limit: Json, one: Json, another: Json
) -> None:
    await make_limit(api, window="minute", **limit)
    trusted, untrusted = await api.make(trusts_attribution=True), await api.make()
    # What an untrusted caller says takes nothing from anybody, and holds nobody.
    assert await statuses(api, untrusted["key"], one, one, one) == [200, 200, 200]
    assert await statuses(api, trusted["key"], one, one) == [200, 200]
    refused = await ask(api, trusted["key"], one)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
    assert f"'{limit['scope'].replace('_', '-')}-requests-minute'" in error["message"]
    assert await statuses(api, trusted["key"], another, {}) == [200, 200]
    assert await statuses(api, untrusted["key"], one) == [200]


async def test_two_trusted_keys_share_what_an_end_user_may(on_sqlite: KeysApi) -> None:
    await make_limit(on_sqlite, window="minute", **OF_EACH_END_USER)
    first = await on_sqlite.make(trusts_attribution=True)
    second = (await on_sqlite.by_command(trusts_attribution=True)).secret
    assert await statuses(on_sqlite, first["key"], ZOE) == [200]
    assert await statuses(on_sqlite, second, ZOE, ZOE) == [200, 429]


async def test_a_key_is_made_trusted_and_untrusted_while_it_is_used(api: KeysApi) -> None:
    await make_limit(api, window="minute", **OF_EACH_END_USER)
    made = await api.make()
    assert made["trusts_attribution"] is False
    assert await statuses(api, made["key"], ZOE, ZOE, ZOE) == [200, 200, 200]
    for trusts, status in ((True, 429), (False, 200)):
        changed = await api.call("PATCH", f"/{made['id']}", json={"trusts_attribution": trusts})
        assert (changed.status_code, changed.json()["trusts_attribution"]) == (200, trusts)
        assert (await api.listed())[0]["trusts_attribution"] is trusts

        async def is_so(status: int = status) -> bool:
            return (await ask(api, made["key"], ZOE)).status_code == status

        await eventually(is_so, what=f"a {status}")
        # What the change does not name, stays.
        assert (await api.call("PATCH", f"/{made['id']}", json={"name": "app"})).json()["trusts_attribution"] is trusts


async def test_an_admin_alone_says_who_is_trusted(api: KeysApi) -> None:
    manage = (await api.by_command(scopes=("manage",), owner="admin@example.com")).secret
    plain = await api.make(owner="member@example.com")
    trusted = await api.make(owner="member@example.com", trusts_attribution=True)
    for by in ("member", manage):
        answer = await api.call("POST", by=by, json={"name": "k", "trusts_attribution": True})
        assert (answer.status_code, ADMIN_ALONE in answer.json()["error"]["message"]) == (403, True)
        for key, wanted in ((plain, True), (trusted, False)):
            answer = await api.call("PATCH", f"/{key['id']}", by=by, json={"trusts_attribution": wanted, "name": "x"})
            assert (answer.status_code, ADMIN_ALONE in answer.json()["error"]["message"]) == (403, True)
            # What it is already is no change.
            as_it_is = {"trusts_attribution": not wanted}
            assert (await api.call("PATCH", f"/{key['id']}", by=by, json=as_it_is)).status_code == 200
    kept = {key["id"]: (key["trusts_attribution"], key["name"]) for key in await api.listed()}
    assert (kept[plain["id"]], kept[trusted["id"]], len(kept)) == ((False, "app"), (True, "app"), 3)


async def test_a_member_widens_no_trusted_key(on_sqlite: KeysApi) -> None:
    bounds: Json = {"owner": "member@example.com", "models": ["echo"]}
    trusted, plain = await on_sqlite.make(**bounds, trusts_attribution=True), await on_sqlite.make(**bounds)
    for key, status in ((trusted, 403), (plain, 200)):
        widened = await on_sqlite.call("PATCH", f"/{key['id']}", by="member", json={"models": None})
        assert widened.status_code == status


def test_the_command_makes_a_trusted_key_and_lists_it_as_such(sqlite_url: str, tmp_path: Path) -> None:
    shell = Shell(sqlite_url, tmp_path / "var")
    asyncio.run(bring_to_head(sqlite_url))
    trusted = shell.json("keys", "create", "--name", "front-end", "--trust-attribution")
    plain = shell.json("keys", "create", "--name", "plain")
    for key, trusts in ((trusted, True), (plain, False)):
        assert shell.principal_of(key["key"]).trusts_attribution is trusts
    listed = {key["name"]: key["trusts_attribution"] for key in shell.json("keys", "list")}
    assert listed == {"front-end": True, "plain": False}


@pytest.mark.parametrize("value", [None, 1, "true", []])
async def test_trust_is_given_in_no_other_word_than_true_or_false(on_sqlite: KeysApi, value: object) -> None:
    made = await on_sqlite.make()
    for method, path, body in (("POST", "", {"name": "k"}), ("PATCH", f"/{made['id']}", {})):
        answer = await on_sqlite.call(method, path, json=body | {"trusts_attribution": value})
        assert answer.status_code == 422
        assert answer.json()["error"]["errors"][0]["loc"] == ["body", "trusts_attribution"]


@pytest.mark.parametrize("scope", ["end_user", "tag"])
async def test_sums_of_end_users_and_tags_are_of_trusted_keys_alone(api: KeysApi, scope: str) -> None:
    trusted, also = [(await api.by_command(trusts_attribution=True)).id for _ in range(2)]
    untrusted, nobody_s = (await api.by_command()).id, uuid.uuid4()
    said = {"upstream": "echo", "end_user": "zoe", "tags": {"team": "search"}, "ended_at": utc_now()}
    entries = [an_entry(key_id=key, **said) for key in (trusted, also, untrusted, nobody_s, None)]
    await LedgerStore(api.database).insert(entries)
    sums = DatabaseSums(api.database)
    subject = "zoe" if scope == "end_user" else "team=search"
    found = await sums.of(a_limit(scope=scope, window="total"), subject, 0, 0)
    assert (found.used, {*found.seen}) == (2, {entry.entry_id.hex for entry in entries[:2]})
    assert (await sums.of(a_limit(scope="workspace", window="total"), None, 0, 0)).used == 5


@pytest.mark.parametrize(("limit", "one"), [case[:2] for case in BOTH_SCOPES], ids=["end_user", "tag"])
async def test_what_an_untrusted_key_used_is_in_no_counter_that_is_summed_from_the_ledger(
    api: KeysApi, limit: Json, one: Json
) -> None:
    trusted, untrusted = await api.make(trusts_attribution=True), await api.make()
    assert await statuses(api, untrusted["key"], one, one, one) == [200, 200, 200]

    async def entered() -> bool:
        async with api.database.session() as session:
            return await session.scalar(select(func.count()).select_from(LedgerEntry)) == 3

    await eventually(entered, what="three entries")
    await make_limit(api, window="total", **limit)
    assert await statuses(api, trusted["key"], one, one, one) == [200, 200, 429]
