"""The authenticator against a real database: who is let in, who is told what, and within which time."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from tests.support.credentials import (
    EMAIL,
    PASSWORD,
    access_token,
    bearer,
    database_at_head,
    keyrings,
    quick_passwords,
    x_api_key,
)
from tests.support.services import Service, drop_database
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys, CreatedKey
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.accounts.schemas import NewKey, NewUser
from tidegate.accounts.service import Accounts
from tidegate.auth.api_keys import generate_key
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyring, Keyrings
from tidegate.auth.models import ApiKey
from tidegate.auth.principal_cache import CacheBounds
from tidegate.errors import InvalidApiKey, InvalidToken, PermissionDenied, TokenExpired, Unavailable
from tidegate.storage.changes import Changes, key_topic, user_topic
from tidegate.storage.database import Database


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Gateway:
    """A database with an admin, and an authenticator whose clocks the test moves."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.monotonic = Clock(1_000.0)
        self.clock = Clock(datetime.now(UTC).timestamp())
        self.keys = ApiKeys(database, keyrings().peppers)
        self.accounts = Accounts(database, quick_passwords())
        self.authenticator = Authenticator(
            database,
            keyrings(),
            bounds=CacheBounds(answer_s=30),
            monotonic=self.monotonic,
            clock=self.clock,
        )

    def pass_time(self, seconds: float) -> None:
        self.monotonic.now += seconds
        self.clock.now += seconds

    async def owned_key(self, **options: object) -> CreatedKey:
        return await self.keys.create(NewKey.model_validate({"name": "test", "owner": EMAIL, **options}))


@pytest.fixture
async def gateway(database_url: str) -> AsyncIterator[Gateway]:
    async with database_at_head(database_url) as database:
        gateway = Gateway(database)
        await gateway.accounts.create(NewUser(email=EMAIL, role="admin", password=SecretStr(PASSWORD)))
        try:
            yield gateway
        finally:
            await gateway.authenticator.aclose()


async def test_a_key_of_a_service_account_is_its_principal_by_either_header(gateway: Gateway) -> None:
    created = await gateway.keys.create(NewKey(name="search", models=("gpt-*", "small"), scopes=("inference", "usage")))
    for headers in (
        bearer(created.secret),
        x_api_key(created.secret),
        bearer(created.secret) + x_api_key(created.secret),
    ):
        principal = await gateway.authenticator.authenticate(headers)
        assert principal.workspace_id == DEFAULT_WORKSPACE_ID
        assert (principal.key_id, principal.key_prefix) == (created.id, created.prefix)
        assert (principal.user_id, principal.role) == (None, None)
        assert principal.models == ("gpt-*", "small")
        assert principal.scopes == {"inference", "usage"}
        # Drivers have UUIDs of their own, which not everything can write down.
        assert {type(principal.workspace_id), type(principal.key_id)} == {uuid.UUID}
    assert gateway.authenticator.look_ups == 1


async def test_a_key_of_a_user_carries_its_owner(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    principal = await gateway.authenticator.authenticate(bearer(created.secret))
    assert principal.user_id is not None
    assert (principal.role, principal.models, principal.expires_at) == ("admin", None, None)


async def test_an_access_token_is_its_user_as_the_database_knows_them(gateway: Gateway) -> None:
    user = await gateway.accounts.sign_in(EMAIL, PASSWORD)
    token = await access_token(gateway.database, gateway.authenticator, user.id)
    principal = await gateway.authenticator.authenticate(bearer(token))
    assert (principal.user_id, principal.key_id, principal.role) == (user.id, None, "admin")
    assert principal.email == EMAIL
    assert {type(principal.user_id), type(principal.sign_in_id)} == {uuid.UUID}
    assert principal.scopes == {"inference", "usage", "manage", "metrics"}
    assert await gateway.authenticator.authenticate(x_api_key(token)) is principal


async def test_a_revoked_key_is_refused_within_a_second_and_told_so(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    await gateway.authenticator.authenticate(bearer(created.secret))
    await gateway.keys.revoke(created.prefix)
    gateway.pass_time(0.49)
    await gateway.authenticator.authenticate(bearer(created.secret))
    gateway.pass_time(0.51)
    with pytest.raises(InvalidApiKey, match=f"tg_{created.prefix} was revoked"):
        await gateway.authenticator.authenticate(bearer(created.secret))


async def test_a_key_in_use_is_asked_of_in_the_background(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    principal = await gateway.authenticator.authenticate(bearer(created.secret))
    gateway.pass_time(0.5)
    assert await gateway.authenticator.authenticate(bearer(created.secret)) is principal
    await eventually(lambda: not gateway.authenticator._cache._flights)
    assert gateway.authenticator.look_ups == 2
    gateway.pass_time(0.9)
    assert await gateway.authenticator.authenticate(bearer(created.secret)) is not principal
    await eventually(lambda: gateway.authenticator.look_ups == 3)


async def test_what_is_told_is_obeyed_at_once(gateway: Gateway) -> None:
    changes = Changes(None, "changes")
    authenticator = Authenticator(
        gateway.database, keyrings(), changes=changes, bounds=CacheBounds(answer_s=30), monotonic=gateway.monotonic
    )
    revoked, owned = await gateway.keys.create(NewKey(name="service")), await gateway.owned_key()
    for key in (revoked, owned):
        await authenticator.authenticate(bearer(key.secret))
    await gateway.keys.revoke(revoked.prefix)
    await authenticator.authenticate(bearer(revoked.secret))
    await changes.tell(key_topic(revoked.id))
    with pytest.raises(InvalidApiKey, match="was revoked"):
        await authenticator.authenticate(bearer(revoked.secret))
    user = await gateway.accounts.disable(EMAIL)
    await authenticator.authenticate(bearer(owned.secret))
    await changes.tell(user_topic(user.id))
    with pytest.raises(InvalidApiKey, match="disabled"):
        await authenticator.authenticate(bearer(owned.secret))
    # What nobody of ours said is left alone.
    await changes.tell("key:no-id")
    await authenticator.aclose()


async def test_a_rotated_key_keeps_its_id_and_its_old_secret_ends(gateway: Gateway) -> None:
    created = await gateway.owned_key(models=("small",))
    await gateway.authenticator.authenticate(bearer(created.secret))
    rotated = await gateway.keys.rotate(created.prefix)
    assert rotated.id == created.id
    assert (await gateway.authenticator.authenticate(bearer(rotated.secret))).models == ("small",)
    gateway.pass_time(5)
    with pytest.raises(InvalidApiKey, match="There is no such API key"):
        await gateway.authenticator.authenticate(bearer(created.secret))


async def test_a_disabled_user_loses_keys_and_tokens(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    user = await gateway.accounts.sign_in(EMAIL, PASSWORD)
    token = await access_token(gateway.database, gateway.authenticator, user.id)
    for credential in (created.secret, token):
        await gateway.authenticator.authenticate(bearer(credential))
    await gateway.accounts.disable(EMAIL)
    gateway.pass_time(5)
    with pytest.raises(InvalidApiKey, match="disabled"):
        await gateway.authenticator.authenticate(bearer(created.secret))
    with pytest.raises(InvalidToken, match="disabled"):
        await gateway.authenticator.authenticate(bearer(token))


async def test_an_expiry_is_judged_at_each_use_cached_or_not(gateway: Gateway) -> None:
    expires_at = datetime.fromtimestamp(gateway.clock.now, UTC) + timedelta(seconds=60)
    created = await gateway.owned_key(expires_at=expires_at)
    await gateway.authenticator.authenticate(bearer(created.secret))
    # Only the clock on the wall moves: what is remembered stays fresh.
    gateway.clock.now += 59
    await gateway.authenticator.authenticate(bearer(created.secret))
    gateway.clock.now += 1
    with pytest.raises(InvalidApiKey, match=f"tg_{created.prefix} has expired"):
        await gateway.authenticator.authenticate(bearer(created.secret))
    gateway.pass_time(5)
    with pytest.raises(InvalidApiKey, match="has expired"):
        await gateway.authenticator.authenticate(bearer(created.secret))


async def test_a_cached_token_ends_at_its_second(gateway: Gateway) -> None:
    user = await gateway.accounts.sign_in(EMAIL, PASSWORD)
    token = await access_token(gateway.database, gateway.authenticator, user.id)
    await gateway.authenticator.authenticate(bearer(token))
    gateway.clock.now += 15 * 60
    with pytest.raises(TokenExpired):
        await gateway.authenticator.authenticate(bearer(token))


async def test_a_wrong_secret_learns_nothing_of_its_prefix(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    await gateway.keys.revoke(created.prefix)
    messages = set()
    for wrong in (f"tg_{created.prefix}_{'A' * 43}", generate_key().secret):
        with pytest.raises(InvalidApiKey) as refused:
            await gateway.authenticator.authenticate(bearer(wrong))
        messages.add(refused.value.message)
        assert wrong not in refused.value.message
    assert len(messages) == 1


@pytest.mark.parametrize("credential", ["tg_", "tg_abcdefgh_short", "tg_abcdefgh_" + "é" * 43, "not-a-token", "é"])
async def test_what_has_no_form_is_refused_without_a_look_up(gateway: Gateway, credential: str) -> None:
    with pytest.raises(InvalidApiKey if credential.startswith("tg_") else InvalidToken) as refused:
        await gateway.authenticator.authenticate(bearer(credential))
    assert gateway.authenticator.look_ups == 0
    assert credential not in refused.value.message or credential == "tg_"


async def test_a_wrong_key_is_looked_up_once_a_second_at_most(gateway: Gateway) -> None:
    wrong = generate_key().secret
    for _ in range(10):
        with pytest.raises(InvalidApiKey):
            await gateway.authenticator.authenticate(bearer(wrong))
    assert gateway.authenticator.look_ups == 1


async def test_a_key_hashed_by_an_older_pepper_is_recognised_after_a_rotation(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    old = keyrings()
    rotated = Keyrings(jwt=old.jwt, peppers=Keyring({"2": b"n" * 32, "1": old.peppers.current}))
    authenticator = Authenticator(gateway.database, rotated, bounds=CacheBounds(answer_s=30))
    assert (await authenticator.authenticate(bearer(created.secret))).key_id == created.id
    await authenticator.aclose()


async def test_fifty_requests_at_once_cost_one_look_up(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    calls = [gateway.authenticator.authenticate(bearer(created.secret)) for _ in range(50)]
    assert {principal.key_id for principal in await asyncio.gather(*calls)} == {created.id}
    assert gateway.authenticator.look_ups == 1


async def test_the_last_use_is_written_behind_the_callers_back_at_most_once_a_minute(gateway: Gateway) -> None:
    created = await gateway.owned_key()

    async def last_used_at() -> datetime | None:
        async with gateway.database.session() as session:
            return await session.scalar(select(ApiKey.last_used_at).where(ApiKey.id == created.id))

    assert await last_used_at() is None
    await gateway.authenticator.authenticate(bearer(created.secret))
    first = await eventually(last_used_at)
    await eventually(lambda: gateway.authenticator._directory.upkeep.is_idle)
    gateway.pass_time(5)
    await gateway.authenticator.authenticate(bearer(created.secret))
    assert gateway.authenticator._directory.upkeep.is_idle
    assert await last_used_at() == first
    async with gateway.database.transaction() as session:
        await session.execute(update(ApiKey).values(last_used_at=datetime.now(UTC) - timedelta(minutes=2)))
    gateway.pass_time(5)
    await gateway.authenticator.authenticate(bearer(created.secret))

    async def is_recent() -> bool:
        at = await last_used_at()
        return at is not None and first is not None and at >= first

    await eventually(is_recent)


async def test_a_key_that_is_refused_is_not_noted_as_used(gateway: Gateway) -> None:
    created = await gateway.owned_key()
    with pytest.raises(InvalidApiKey):
        await gateway.authenticator.authenticate(bearer(f"tg_{created.prefix}_{'A' * 43}"))
    assert gateway.authenticator._directory.upkeep.is_idle


async def test_a_use_from_where_the_key_may_not_be_used_is_not_noted(gateway: Gateway) -> None:
    created = await gateway.owned_key(allowed_addresses=["192.0.2.0/24"])

    def is_idle() -> bool:
        return gateway.authenticator._directory.upkeep.is_idle

    for address in ("198.51.100.1", None):
        with pytest.raises(PermissionDenied):
            await gateway.authenticator.authenticate(bearer(created.secret), address)
    assert is_idle()
    # Known by now, so without another look-up.
    await gateway.authenticator.authenticate(bearer(created.secret), "192.0.2.7")
    assert not is_idle()
    await eventually(is_idle)
    async with gateway.database.session() as session:
        assert await session.scalar(select(ApiKey.last_used_at).where(ApiKey.id == created.id)) is not None
    await gateway.authenticator.authenticate(bearer(created.secret), "192.0.2.7")
    assert is_idle()


async def test_known_callers_go_on_where_the_database_is_gone_and_unknown_ones_are_told(
    postgres_url: str, postgres_service: Service
) -> None:
    async with database_at_head(postgres_url) as database:
        gateway = Gateway(database)
        known, unknown = [await gateway.keys.create(NewKey(name=name)) for name in ("known", "unknown")]
        await gateway.authenticator.authenticate(bearer(known.secret))
        await gateway.authenticator.aclose()
        await asyncio.to_thread(drop_database, postgres_service, postgres_url)
        gateway.pass_time(5)
        assert (await gateway.authenticator.authenticate(bearer(known.secret))).key_id == known.id
        assert gateway.authenticator.stale_uses == 1
        with pytest.raises(Unavailable):
            await gateway.authenticator.authenticate(bearer(unknown.secret))
        gateway.pass_time(600)
        with pytest.raises(Unavailable):
            await gateway.authenticator.authenticate(bearer(known.secret))
        await gateway.authenticator.aclose()
