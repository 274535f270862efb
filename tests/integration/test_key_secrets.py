"""A key's secrets over time: an old one that goes on beside the new, and hashes that move to the current pepper."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from tests.support.credentials import bearer, database_at_head, keyrings
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys, CreatedKey
from tidegate.accounts.api_keys.secrets import MOST_RETIRING
from tidegate.accounts.schemas import NewKey
from tidegate.auth.api_keys import StoredHash
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyring, Keyrings
from tidegate.auth.models import ApiKey, RetiringSecret
from tidegate.auth.principal import Principal
from tidegate.auth.principal_cache import CacheBounds
from tidegate.errors import Conflict, InvalidApiKey, NotFound
from tidegate.storage.changes import Changes, key_topic
from tidegate.storage.database import Database

DAY = timedelta(days=1)
OLD = keyrings().peppers
BOTH = Keyring({"2": b"n" * 32, "1": OLD.current})
NEW = Keyring({"2": b"n" * 32})


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.now


class Gateway:
    """A database with keys, a process that hears of their changes, and its clock on the wall, which the test moves."""

    def __init__(self, database: Database, peppers: Keyring = OLD) -> None:
        self.database = database
        self.clock = Clock()
        self.changes = Changes(None, "changes")
        self.keys = ApiKeys(database, peppers)
        self.authenticator = Authenticator(
            database,
            Keyrings(jwt=keyrings().jwt, peppers=peppers),
            changes=self.changes,
            bounds=CacheBounds(answer_s=30),
            clock=self.clock,
        )

    async def principal_of(self, secret: str) -> Principal:
        return await self.authenticator.authenticate(bearer(secret))

    async def is_refused(self, secret: str) -> bool:
        try:
            await self.principal_of(secret)
        except InvalidApiKey:
            return True
        return False

    async def rotate(self, prefix: str, overlap: timedelta = timedelta(0)) -> CreatedKey:
        rotated = await self.keys.rotate(prefix, overlap)
        await self.changes.tell(key_topic(rotated.id))
        return rotated

    async def revoke(self, prefix: str) -> ApiKey:
        row = await self.keys.revoke(prefix)
        await self.changes.tell(key_topic(row.id))
        return row

    async def retiring(self) -> list[str]:
        async with self.database.session() as session:
            return list(await session.scalars(select(RetiringSecret.prefix).order_by(RetiringSecret.ends_at)))

    async def pepper_of(self, prefix: str) -> str | None:
        async with self.database.session() as session:
            return await session.scalar(
                select(ApiKey.pepper_kid)
                .where(ApiKey.prefix == prefix)
                .union_all(select(RetiringSecret.pepper_kid).where(RetiringSecret.prefix == prefix))
            )

    async def is_idle(self) -> None:
        await eventually(lambda: self.authenticator._directory.upkeep.is_idle)


@pytest.fixture
async def gateway(database_url: str) -> AsyncIterator[Gateway]:
    async with database_at_head(database_url) as database:
        gateway = Gateway(database)
        try:
            yield gateway
        finally:
            await gateway.authenticator.aclose()


async def test_an_old_secret_goes_on_beside_the_new_one_until_its_overlap_ends(gateway: Gateway) -> None:
    old = await gateway.keys.create(NewKey(name="app", models=("small",)))
    assert (await gateway.principal_of(old.secret)).expires_at is None
    new = await gateway.rotate(old.prefix, DAY)
    # Without any time passing: both were told at once.
    by_old, by_new = await gateway.principal_of(old.secret), await gateway.principal_of(new.secret)
    assert (by_old.key_prefix, by_new.key_prefix) == (old.prefix, new.prefix)
    assert by_old.key_id == by_new.key_id == old.id
    assert by_old.models == by_new.models == ("small",)
    assert by_new.expires_at is None
    assert by_old.expires_at is not None
    assert by_old.expires_at == pytest.approx(gateway.clock.now + DAY.total_seconds(), abs=60)
    gateway.clock.now = by_old.expires_at - 0.001
    await gateway.principal_of(old.secret)
    gateway.clock.now = by_old.expires_at
    with pytest.raises(InvalidApiKey, match=f"tg_{old.prefix} has expired"):
        await gateway.principal_of(old.secret)
    await gateway.principal_of(new.secret)


async def test_an_old_secret_never_outlives_its_key(gateway: Gateway) -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)
    old = await gateway.keys.create(NewKey(name="app", expires_at=ends))
    await gateway.rotate(old.prefix, DAY)
    assert (await gateway.principal_of(old.secret)).expires_at == pytest.approx(ends.timestamp(), abs=0.001)


async def test_without_an_overlap_every_older_secret_ends_at_once(gateway: Gateway) -> None:
    first = await gateway.keys.create(NewKey(name="app"))
    second = await gateway.rotate(first.prefix, DAY)
    third = await gateway.rotate(second.prefix, DAY)
    for key in (first, second, third):
        assert (await gateway.principal_of(key.secret)).key_id == first.id
    last = await gateway.rotate(third.prefix)
    assert [await gateway.is_refused(key.secret) for key in (first, second, third, last)] == [True, True, True, False]
    assert await gateway.retiring() == []


async def test_what_has_ended_is_deleted_by_the_next_overlap_and_what_works_is_kept(gateway: Gateway) -> None:
    first = await gateway.keys.create(NewKey(name="app"))
    second = await gateway.rotate(first.prefix, timedelta(hours=1))
    third = await gateway.rotate(second.prefix, DAY)
    async with gateway.database.transaction() as session:
        past = datetime.now(UTC) - timedelta(minutes=1)
        await session.execute(update(RetiringSecret).where(RetiringSecret.prefix == first.prefix).values(ends_at=past))
    await gateway.rotate(third.prefix, DAY)
    assert await gateway.retiring() == [second.prefix, third.prefix]


async def test_a_key_has_so_many_old_secrets_and_no_more(gateway: Gateway) -> None:
    key = await gateway.keys.create(NewKey(name="app"))
    for _ in range(MOST_RETIRING):
        key = await gateway.rotate(key.prefix, DAY)
    with pytest.raises(Conflict, match="without an overlap"):
        await gateway.rotate(key.prefix, DAY)
    assert len(await gateway.retiring()) == MOST_RETIRING
    assert not await gateway.is_refused(key.secret)
    await gateway.rotate(key.prefix)
    assert await gateway.retiring() == []


async def test_a_revoked_key_ends_with_its_old_secrets_once_told(gateway: Gateway) -> None:
    old = await gateway.keys.create(NewKey(name="app"))
    new = await gateway.rotate(old.prefix, DAY)
    for key in (old, new):
        await gateway.principal_of(key.secret)
    assert (await gateway.revoke(new.prefix)).revoked_at is not None
    assert [await gateway.is_refused(key.secret) for key in (old, new)] == [True, True]
    assert await gateway.retiring() == []


async def test_an_old_secret_of_a_revoked_key_opens_nothing_though_its_row_is_there(gateway: Gateway) -> None:
    old = await gateway.keys.create(NewKey(name="app"))
    await gateway.rotate(old.prefix, DAY)
    async with gateway.database.transaction() as session:
        await session.execute(update(ApiKey).values(revoked_at=datetime.now(UTC)))
    with pytest.raises(InvalidApiKey, match=f"tg_{old.prefix} was revoked"):
        await gateway.principal_of(old.secret)


async def test_revoking_an_old_secret_ends_it_alone(gateway: Gateway) -> None:
    old = await gateway.keys.create(NewKey(name="app"))
    new = await gateway.rotate(old.prefix, DAY)
    await gateway.principal_of(old.secret)
    row = await gateway.revoke(f"tg_{old.prefix}")
    assert (row.prefix, row.revoked_at) == (new.prefix, None)
    assert [await gateway.is_refused(key.secret) for key in (old, new)] == [True, False]
    with pytest.raises(NotFound):
        await gateway.keys.revoke(old.prefix)


async def test_the_secret_of_a_prefix_that_retires_is_judged_as_any_other(gateway: Gateway) -> None:
    old = await gateway.keys.create(NewKey(name="app"))
    new = await gateway.rotate(old.prefix, DAY)
    for wrong in (f"tg_{old.prefix}_{new.secret[12:]}", f"tg_{new.prefix}_{old.secret[12:]}"):
        with pytest.raises(InvalidApiKey, match="There is no such API key"):
            await gateway.principal_of(wrong)


async def test_a_key_in_use_moves_to_the_current_pepper_and_the_old_one_can_be_dropped(gateway: Gateway) -> None:
    used, idle = [await gateway.keys.create(NewKey(name=name)) for name in ("used", "idle")]
    rotated = Gateway(gateway.database, BOTH)
    assert (await rotated.principal_of(used.secret)).key_id == used.id
    await rotated.is_idle()
    assert [await rotated.pepper_of(key.prefix) for key in (used, idle)] == ["2", "1"]
    await rotated.authenticator.aclose()
    dropped = Gateway(gateway.database, NEW)
    assert [await dropped.is_refused(key.secret) for key in (used, idle)] == [False, True]
    await dropped.authenticator.aclose()


async def test_an_old_secret_moves_to_the_current_pepper_too(gateway: Gateway) -> None:
    old = await gateway.keys.create(NewKey(name="app"))
    new = await gateway.rotate(old.prefix, DAY)
    rotated = Gateway(gateway.database, BOTH)
    await rotated.principal_of(old.secret)
    await rotated.is_idle()
    assert [await rotated.pepper_of(key.prefix) for key in (old, new)] == ["2", "1"]
    await rotated.authenticator.aclose()
    dropped = Gateway(gateway.database, NEW)
    assert (await dropped.principal_of(old.secret)).key_id == old.id
    await dropped.authenticator.aclose()


async def test_only_the_hash_that_was_verified_is_replaced(gateway: Gateway) -> None:
    key = await gateway.keys.create(NewKey(name="app"))
    async with gateway.database.session() as session:
        row = await session.get_one(ApiKey, key.id)
    upkeep = gateway.authenticator._directory.upkeep
    other = Gateway(gateway.database, BOTH)
    await other.principal_of(key.secret)
    await other.is_idle()
    # What another worker had moved already, and what it was told to write of a row that it read before.
    async with gateway.database.session() as session:
        moved = (await session.get_one(ApiKey, key.id)).secret_hash
    upkeep.rehash(row, StoredHash(b"x" * 32, "hmac-sha256", "9"))
    await gateway.is_idle()
    async with gateway.database.session() as session:
        row = await session.get_one(ApiKey, key.id)
    assert (row.secret_hash, row.pepper_kid) == (moved, "2")
    await other.authenticator.aclose()


async def test_a_wrong_secret_and_an_expired_key_move_nothing(gateway: Gateway) -> None:
    key = await gateway.keys.create(NewKey(name="app", expires_at=datetime.now(UTC) + DAY))
    rotated = Gateway(gateway.database, BOTH)
    assert await rotated.is_refused(f"tg_{key.prefix}_{'A' * 43}")
    assert rotated.authenticator._directory.upkeep.is_idle
    async with gateway.database.transaction() as session:
        await session.execute(update(ApiKey).values(expires_at=datetime.now(UTC) - DAY))
    assert await rotated.is_refused(key.secret)
    assert rotated.authenticator._directory.upkeep.is_idle
    assert await rotated.pepper_of(key.prefix) == "1"
    await rotated.authenticator.aclose()
