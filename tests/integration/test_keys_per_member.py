"""A member holds so many API keys and makes no more, also where they ask for many at once."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.keys_api import KeysApi
from tidegate.auth.models import ApiKey
from tidegate.ledger.entry import utc_now
from tidegate.settings.groups import LimitsSettings

MOST = 3


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(database_url, tmp_path, limits=LimitsSettings(keys_per_member=MOST)) as api:
        yield api


async def _statuses(api: KeysApi, n: int, by: str) -> Counter[int]:
    answers = await asyncio.gather(*(api.call("POST", by=by, json={"name": "app"}) for _ in range(n)))
    return Counter(answer.status_code for answer in answers)


async def test_of_many_keys_asked_for_at_once_no_more_are_made_than_a_member_may_hold(api: KeysApi) -> None:
    assert await _statuses(api, 12, "member") == {201: MOST, 409: 12 - MOST}
    refusal = (await api.call("POST", by="member", json={"name": "app"})).json()["error"]
    assert (refusal["code"], f"({MOST})" in refusal["message"]) == ("conflict", True)
    assert "revoke one" in refusal["message"]
    assert await _statuses(api, 1, "other") == {201: 1}


async def test_a_key_that_is_revoked_makes_room_and_one_that_expired_does_not(api: KeysApi) -> None:
    keys = [await api.make(by="member") for _ in range(MOST)]
    async with api.database.transaction() as session:
        (await session.get_one(ApiKey, uuid.UUID(keys[0]["id"]))).expires_at = utc_now() - timedelta(days=1)
    assert [key["state"] for key in await api.listed(by="member")] == ["active", "active", "expired"]
    assert await _statuses(api, 1, "member") == {409: 1}
    rotated = await api.call("POST", f"/{keys[1]['id']}/rotate", by="member")
    assert rotated.status_code == 200
    assert (await api.call("DELETE", f"/{keys[2]['id']}", by="member")).status_code == 204
    assert await _statuses(api, 4, "member") == {201: 1, 409: 3}


async def test_who_may_do_more_is_not_bounded_and_what_an_admin_gives_counts(api: KeysApi) -> None:
    assert await _statuses(api, MOST + 2, "admin") == {201: MOST + 2}
    keeper = await api.make(scopes=["manage", "inference"], service_account=True)
    assert await _statuses(api, MOST + 2, keeper["key"]) == {201: MOST + 2}
    given = [await api.make(owner="member@example.com") for _ in range(MOST + 1)]
    assert len(given) == MOST + 1
    assert await _statuses(api, 1, "member") == {409: 1}


async def test_none_is_a_bound_too(sqlite_url: str, tmp_path: Path) -> None:
    async with KeysApi.open(sqlite_url, tmp_path, limits=LimitsSettings(keys_per_member=0)) as api:
        refusal = await api.call("POST", by="member", json={"name": "app"})
        assert refusal.status_code == 409
        assert "ask an admin" in refusal.json()["error"]["message"]
        await api.make()
