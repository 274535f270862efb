"""`/api/keys`: rotation with an overlap, the addresses that a key may be used from, and keys by owner."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.keys_api import Json, KeysApi
from tidegate.settings.groups import HttpSettings

HERE, THERE = "192.0.2.7", "198.51.100.9"
PROXY = "10.0.0.1"


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(database_url, tmp_path) as api:
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(sqlite_url, tmp_path) as api:
        yield api


async def rotated(api: KeysApi, key: Json, *, by: str = "admin", **body: object) -> Json:
    answer = await api.call("POST", f"/{key['id']}/rotate", by=by, json=body)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), answer.text
    found: Json = answer.json()
    return found


async def test_a_rotation_with_an_overlap_leaves_both_secrets_working_and_says_until_when(api: KeysApi) -> None:
    made = await api.make()
    assert made["retiring"] == []
    new = await rotated(api, made, overlap="24h")
    ((prefix, ends_at),) = [(each["prefix"], each["ends_at"]) for each in new["retiring"]]
    left = datetime.fromisoformat(ends_at) - datetime.now(UTC)
    assert prefix == made["prefix"]
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    assert api.told == [f"key:{made['id']}"]
    for key in (made, new):
        seen = (await api.call("GET", by=key["key"], at="/auth/me")).json()
        assert seen["key"]["id"] == made["id"]
    (listed,) = await api.listed()
    assert listed["retiring"] == new["retiring"]
    again = await rotated(api, made)
    assert again["retiring"] == []
    assert [await api.status_of(key["key"]) for key in (made, new, again)] == [401, 401, 200]


async def test_an_old_secret_is_ended_by_itself(api: KeysApi) -> None:
    made = await api.make(by="member")
    new = await rotated(api, made, by="member", overlap=3600)
    path = f"/{made['id']}/retiring"
    assert (await api.call("DELETE", f"{path}/{made['prefix']}", by="other")).status_code == 403
    assert (await api.call("DELETE", f"{path}/{made['prefix']}", by="stranger")).status_code == 404
    assert await api.status_of(made["key"]) == 200
    api.told.clear()
    ended = await api.call("DELETE", f"{path}/tg_{made['prefix']}", by="member")
    assert (ended.status_code, ended.content) == (204, b"")
    assert api.told == [f"key:{made['id']}"]
    assert [await api.status_of(key["key"]) for key in (made, new)] == [401, 200]
    # Neither twice, nor by the prefix that the key has now, nor by what is none.
    for prefix, status in ((made["prefix"], 404), (new["prefix"], 404), ("none", 422)):
        assert (await api.call("DELETE", f"{path}/{prefix}", by="member")).status_code == status
    assert await api.status_of(new["key"]) == 200


async def test_a_revoked_key_lists_no_old_secrets(on_sqlite: KeysApi) -> None:
    made = await on_sqlite.make()
    new = await rotated(on_sqlite, made, overlap="7d")
    assert (await on_sqlite.call("DELETE", f"/{made['id']}")).status_code == 204
    assert [await on_sqlite.status_of(key["key"]) for key in (made, new)] == [401, 401]
    assert [key["retiring"] for key in await on_sqlite.listed()] == [[]]


async def test_a_rotation_without_a_body_is_one_without_an_overlap(on_sqlite: KeysApi) -> None:
    made = await on_sqlite.make()
    answer = await on_sqlite.call("POST", f"/{made['id']}/rotate")
    assert (answer.status_code, answer.json()["retiring"]) == (200, [])
    assert await on_sqlite.status_of(made["key"]) == 401


@pytest.mark.parametrize(
    "overlap", [-1, 604801, "8d", "0h", "24", "1w", "24 h", "", "-1h", "999999d", 1.5, True, None, ["1h"]]
)
async def test_what_is_no_overlap_is_a_422_and_rotates_nothing(on_sqlite: KeysApi, overlap: object) -> None:
    made = await on_sqlite.make()
    refused = await on_sqlite.call("POST", f"/{made['id']}/rotate", json={"overlap": overlap})
    assert refused.status_code == 422
    assert refused.json()["error"]["errors"][0]["loc"] == ["body", "overlap"]
    assert await on_sqlite.status_of(made["key"]) == 200


async def test_a_key_is_used_from_its_addresses_alone(api: KeysApi) -> None:
    made = await api.make(allowed_addresses=["192.0.2.0/24", "2001:DB8::/32", "192.0.2.0/24", "::ffff:203.0.113.5"])
    assert made["allowed_addresses"] == ["192.0.2.0/24", "2001:db8::/32", "203.0.113.5"]
    for peer, status in (
        (HERE, 200),
        (f"::ffff:{HERE}", 200),
        ("2001:db8::9", 200),
        ("203.0.113.5", 200),
        (THERE, 403),
        ("2001:db9::9", 403),
        ("127.0.0.1", 403),
        (None, 403),
    ):
        api.peer = peer
        assert await api.status_of(made["key"]) == status, peer
    api.peer = THERE
    refused = await api.call("POST", by=made["key"], at="/v1/chat/completions", json={})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], THERE in error["message"]) == (403, "permission_denied", True)
    for hidden in ("192.0.2", "2001", "203.0.113", "admin"):
        assert hidden not in refused.text
    api.peer = None
    assert "not known" in (await api.call("GET", by=made["key"], at="/auth/me")).json()["error"]["message"]


async def test_a_list_is_set_widened_and_taken_away_and_holds_from_the_next_request_on(api: KeysApi) -> None:
    api.peer = HERE
    made = await api.make()
    assert made["allowed_addresses"] is None
    assert await api.status_of(made["key"]) == 200
    for addresses, status in (([THERE], 403), ([THERE, HERE], 200), (["10.0.0.0/8"], 403), (None, 200)):
        changed = await api.call("PATCH", f"/{made['id']}", json={"allowed_addresses": addresses})
        assert changed.json()["allowed_addresses"] == addresses
        assert await api.status_of(made["key"]) == status
    # What a change leaves out stays.
    await api.call("PATCH", f"/{made['id']}", json={"allowed_addresses": [THERE]})
    assert (await api.call("PATCH", f"/{made['id']}", json={"name": "b"})).json()["allowed_addresses"] == [THERE]


async def test_a_secret_that_retires_is_held_to_the_same_addresses(on_sqlite: KeysApi) -> None:
    made = await on_sqlite.make(allowed_addresses=[HERE])
    new = await rotated(on_sqlite, made, overlap="1h")
    for peer, status in ((HERE, 200), (THERE, 403)):
        on_sqlite.peer = peer
        assert [await on_sqlite.status_of(key["key"]) for key in (made, new)] == [status, status]


async def test_a_list_that_cannot_be_read_admits_nobody(api: KeysApi) -> None:
    made = await api.make(allowed_addresses=[HERE])
    async with api.database.transaction() as session:
        await session.execute(text("""UPDATE api_keys SET allowed_addresses = '["everywhere"]'"""))
    assert await api.status_of(made["key"]) == 403
    (listed,) = await api.listed()
    assert listed["allowed_addresses"] == ["everywhere"]
    changed = await api.call("PATCH", f"/{made['id']}", json={"allowed_addresses": ["127.0.0.1"]})
    assert changed.status_code == 200
    assert await api.status_of(made["key"]) == 200


async def test_the_address_is_the_client_s_own_behind_trusted_proxies(sqlite_url: str, tmp_path: Path) -> None:
    http = HttpSettings(trusted_proxies=(PROXY,))
    async with KeysApi.open(sqlite_url, tmp_path, http=http) as api:
        made = await api.make(allowed_addresses=[HERE])

        async def status(peer: str, forwarded: str) -> int:
            api.peer = peer
            headers = {"Authorization": f"Bearer {made['key']}", "X-Forwarded-For": forwarded}
            return (await api.client.get("/auth/me", headers=headers)).status_code

        assert await status(PROXY, HERE) == 200
        assert await status(PROXY, f"{THERE}, {HERE}") == 200
        # What the caller wrote there itself, and what one who is no proxy of ours writes.
        assert await status(PROXY, f"{HERE}, {THERE}") == 403
        assert await status(THERE, HERE) == 403
        assert await status(PROXY, "unknown") == 403
        assert await status(PROXY, "::ffff:c000:207") == 200


async def test_a_member_narrows_a_list_and_widens_none_that_an_admin_gave(api: KeysApi) -> None:
    policy = {"meter": "requests", "window": "minute", "default_amount": 60, "most_amount": 100}
    await api.set_policies(policy)
    generous = await api.make(owner="member@example.com", allowed_addresses=["192.0.2.0/24"])
    path = f"/{generous['id']}"
    for wider in (None, ["192.0.0.0/16"], [HERE, THERE], ["::/0"]):
        refused = await api.call("PATCH", path, by="member", json={"allowed_addresses": wider})
        assert refused.status_code == 403, wider
    for narrower in (["192.0.2.0/24"], ["192.0.2.0/25"], [HERE]):
        assert (await api.call("PATCH", path, by="member", json={"allowed_addresses": narrower})).status_code == 200
    assert (await api.call("PATCH", path, by="member", json={"allowed_addresses": [THERE]})).status_code == 403
    free = await api.make(owner="member@example.com")
    assert (
        await api.call("PATCH", f"/{free['id']}", by="member", json={"allowed_addresses": [HERE]})
    ).status_code == 200
    # A key that they could make themselves is theirs to free.
    own = await api.make(by="member", allowed_addresses=[HERE])
    freed = await api.call("PATCH", f"/{own['id']}", by="member", json={"allowed_addresses": None})
    assert (freed.status_code, freed.json()["allowed_addresses"]) == (200, None)


@pytest.mark.parametrize(
    ("addresses", "loc"),
    [
        ([], ["allowed_addresses"]),
        ("192.0.2.7", ["allowed_addresses"]),
        (["everywhere"], ["allowed_addresses", 0]),
        (["192.0.2.7", "192.0.2.7/24"], ["allowed_addresses", 1]),
        ([7], ["allowed_addresses", 0]),
        ([""], ["allowed_addresses", 0]),
        (["1" * 65], ["allowed_addresses", 0]),
        ([HERE] * 101, ["allowed_addresses"]),
    ],
)
async def test_what_is_no_list_is_a_422_that_names_the_entry(on_sqlite: KeysApi, addresses: object, loc: Json) -> None:
    made = await on_sqlite.make()
    for method, path, body in (("POST", "", {"name": "k"}), ("PATCH", f"/{made['id']}", {})):
        refused = await on_sqlite.call(method, path, json=body | {"allowed_addresses": addresses})
        assert refused.status_code == 422
        assert refused.json()["error"]["errors"][0]["loc"] == ["body", *loc]


async def test_keys_are_listed_by_owner(api: KeysApi) -> None:
    of_member, of_admin = await api.make(by="member"), await api.make()
    nightly = await api.make(name="nightly", service_account=True)
    elsewhere = await api.make(name="nightly", workspace_id=str(api.research))
    for owner, keys in (
        ("Member@example.com", [of_member]),
        ("admin@example.com", [of_admin]),
        ("nightly", [elsewhere, nightly]),
        ("nobody@example.com", []),
    ):
        assert [key["id"] for key in await api.listed(owner=owner)] == [key["id"] for key in keys]
    assert [key["id"] for key in await api.listed(by="member", owner="nightly")] == [nightly["id"]]


async def test_the_pepper_of_each_key_is_listed(on_sqlite: KeysApi) -> None:
    assert (await on_sqlite.make())["pepper_kid"] == "1"
