"""Refresh tokens in the database: their rotation, their reuse, their races, and what is left of them."""

import asyncio
import hashlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, text, update

from tests.support.credentials import EMAIL, PASSWORD, database_at_head, keyrings, quick_passwords
from tests.support.waiting import eventually
from tidegate.accounts.models import RefreshToken, SignIn, User
from tidegate.accounts.schemas import NewUser
from tidegate.accounts.service import Accounts
from tidegate.accounts.sign_ins.refresh_tokens import GRACE, hash_of
from tidegate.accounts.sign_ins.service import Client, IssuedTokens, SignIns, end_sign_ins
from tidegate.audit.models import AuditEvent
from tidegate.auth.tokens import AccessTokens
from tidegate.errors import AuthenticationError, Conflict, InvalidToken, TokenExpired
from tidegate.storage.database import Database

LIFETIME = timedelta(days=30)
CLIENT = Client("192.0.2.7", "a browser", "r-1")


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


class Desk:
    """The sign-ins of a database with a user in it, at a time that the test moves."""

    def __init__(self, database: Database, user: User) -> None:
        self.database = database
        self.user = user
        self.clock = Clock()
        self.told: list[uuid.UUID] = []
        self.sign_ins = self.at(database)

    def at(self, database: Database, *, idle: timedelta | None = None) -> SignIns:
        tokens = AccessTokens(keyrings().jwt, minutes=15)

        async def tell(user_id: uuid.UUID) -> None:
            self.told.append(user_id)

        return SignIns(database, tokens, lifetime=LIFETIME, idle=idle, changed=tell, clock=self.clock)

    async def begin(self) -> IssuedTokens:
        return await self.sign_ins.begin(self.user, CLIENT, "password")

    async def refresh(self, issued: IssuedTokens) -> IssuedTokens:
        return await self.sign_ins.refresh(issued.refresh_token, CLIENT)

    async def rows(self) -> Sequence[RefreshToken]:
        async with self.database.session() as session:
            return (await session.scalars(select(RefreshToken).order_by(RefreshToken.id))).all()

    async def sign_in(self, issued: IssuedTokens) -> SignIn:
        async with self.database.session() as session:
            return await session.get_one(SignIn, issued.sign_in_id)

    async def reuses(self) -> int:
        query = select(func.count()).where(AuditEvent.action == "account.refresh_token_reused")
        async with self.database.session() as session:
            return await session.scalar(query) or 0


@asynccontextmanager
async def _desk_on(url: str) -> AsyncIterator[Desk]:
    async with database_at_head(url) as database:
        accounts = Accounts(database, quick_passwords())
        yield Desk(database, await accounts.create(NewUser(email=EMAIL, password=SecretStr(PASSWORD))))


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    async with _desk_on(database_url) as desk:
        yield desk


@pytest.fixture
async def on_postgres(postgres_url: str) -> AsyncIterator[Desk]:
    """Where two transactions are under way at once: on SQLite the second begins when the first is done."""
    async with _desk_on(postgres_url) as desk:
        yield desk


async def test_a_token_is_kept_as_its_hash_alone_and_names_what_came_of_it(desk: Desk) -> None:
    first = await desk.begin()
    second = await desk.refresh(first)
    used, unused = await desk.rows()
    assert used.token_hash == hashlib.sha256(first.refresh_token.encode()).digest()
    assert unused.token_hash == hash_of(second.refresh_token)
    assert (used.used_at, used.successor_id) == (desk.clock.now, unused.id)
    assert (unused.used_at, unused.successor_id) == (None, None)
    assert first.refresh_token not in repr(first)
    assert first.access_token not in repr(first)


async def test_refreshing_does_not_prolong_a_sign_in(desk: Desk) -> None:
    issued = await desk.begin()
    for days in (10, 10, 9):
        desk.clock.now += timedelta(days=days)
        issued = await desk.refresh(issued)
    assert issued.refresh_expires_in == 24 * 3600
    assert {row.expires_at for row in await desk.rows()} == {(await desk.sign_in(issued)).expires_at}
    desk.clock.now += timedelta(days=1) - timedelta(minutes=5)
    issued = await desk.refresh(issued)
    # Its last access token ends with it.
    assert (issued.expires_in, issued.refresh_expires_in) == (300, 300)
    desk.clock.now += timedelta(minutes=5)
    with pytest.raises(TokenExpired):
        await desk.refresh(issued)
    assert await desk.reuses() == 0


async def test_a_sign_in_that_is_not_refreshed_for_long_has_expired(desk: Desk) -> None:
    desk.sign_ins = desk.at(desk.database, idle=timedelta(days=7))
    first = await desk.begin()
    assert first.refresh_expires_in == 7 * 24 * 3600
    desk.clock.now += timedelta(days=7) - timedelta(seconds=1)
    second = await desk.refresh(first)
    assert second.refresh_expires_in == 7 * 24 * 3600
    assert [row.id for row in await desk.sign_ins.live(desk.user.id)] == [second.sign_in_id]
    desk.clock.now += timedelta(days=7)
    with pytest.raises(TokenExpired):
        await desk.refresh(second)
    assert await desk.sign_ins.live(desk.user.id) == []
    # The first was used: it comes from a thief, however late.
    assert await desk.reuses() == 0
    with pytest.raises(InvalidToken):
        await desk.refresh(first)
    assert await desk.reuses() == 1


async def test_its_last_tokens_are_good_for_no_longer_than_the_sign_in(desk: Desk) -> None:
    desk.sign_ins = desk.at(desk.database, idle=timedelta(days=20))
    issued = await desk.begin()
    desk.clock.now += timedelta(days=19)
    assert (await desk.refresh(issued)).refresh_expires_in == 11 * 24 * 3600


async def test_a_moment_after_its_use_a_token_is_a_conflict_that_changes_nothing(desk: Desk) -> None:
    first = await desk.begin()
    second = await desk.refresh(first)
    before = len(await desk.rows())
    desk.clock.now += GRACE
    with pytest.raises(Conflict):
        await desk.refresh(first)
    assert len(await desk.rows()) == before
    assert (await desk.sign_in(first)).ended_at is None
    assert desk.told == []
    await desk.refresh(second)


@pytest.mark.parametrize("how", ["later than the grace", "not the last but one"])
async def test_any_other_reuse_ends_the_sign_in_before_it_is_refused(desk: Desk, how: str) -> None:
    other = await desk.begin()
    first = await desk.begin()
    second = await desk.refresh(first)
    if how == "later than the grace":
        desk.clock.now += GRACE + timedelta(milliseconds=1)
    else:
        second = await desk.refresh(second)
    with pytest.raises(InvalidToken, match="used before"):
        await desk.refresh(first)
    row = await desk.sign_in(first)
    assert (row.ended_at, row.ended_because) == (desk.clock.now, "reused")
    assert desk.told == [desk.user.id]
    for token in (first, second):
        with pytest.raises(InvalidToken, match="has ended"):
            await desk.refresh(token)
    assert await desk.reuses() == 1
    await desk.refresh(other)


async def test_of_many_that_use_a_token_at_once_one_wins_and_nobody_is_logged_out(
    desk: Desk, database_url: str
) -> None:
    async with AsyncExitStack() as stack:
        # Processes of their own, as far as the database can tell.
        places = []
        for _ in range(4):
            database = await Database.open(database_url)
            stack.push_async_callback(database.aclose)
            places.append(desk.at(database))
        issued = await desk.begin()
        for _ in range(5):
            outcomes = await asyncio.gather(
                *(place.refresh(issued.refresh_token, CLIENT) for place in places * 2), return_exceptions=True
            )
            won = [each for each in outcomes if isinstance(each, IssuedTokens)]
            lost = Counter(type(each) for each in outcomes if not isinstance(each, IssuedTokens))
            assert (len(won), lost) == (1, {Conflict: 7})
            issued = won[0]
    assert sum(row.used_at is None for row in await desk.rows()) == 1
    assert (await desk.sign_in(issued)).ended_at is None
    assert await desk.reuses() == 0


async def test_a_reuse_at_once_ends_the_sign_in_once(desk: Desk) -> None:
    first = await desk.begin()
    await desk.refresh(await desk.refresh(first))
    outcomes = await asyncio.gather(*(desk.refresh(first) for _ in range(8)), return_exceptions=True)
    assert {type(each) for each in outcomes} == {InvalidToken}
    assert await desk.reuses() == 1


async def test_a_refresh_and_a_log_out_at_once_leave_nothing_that_can_be_used(desk: Desk) -> None:
    for _ in range(10):
        issued = await desk.begin()
        refreshed, _ = await asyncio.gather(
            desk.refresh(issued),
            desk.sign_ins.end_by_refresh_token(issued.refresh_token, CLIENT),
            return_exceptions=True,
        )
        row = await desk.sign_in(issued)
        assert row.ended_because == "signed_out"
        if isinstance(refreshed, IssuedTokens):
            with pytest.raises(InvalidToken, match="has ended"):
                await desk.refresh(refreshed)
        else:
            assert isinstance(refreshed, InvalidToken)


async def test_no_sign_in_begins_by_a_password_that_was_changed_meanwhile(desk: Desk) -> None:
    hash_before = desk.user.password_hash

    async def change() -> None:
        async with desk.database.transaction() as session:
            await session.execute(update(User).values(password_hash=uuid.uuid4().hex))
            await end_sign_ins(session, desk.user.id, "password_changed")

    for _ in range(5):
        async with desk.database.transaction() as session:
            await session.execute(update(User).values(password_hash=hash_before))
        await asyncio.gather(*(desk.begin() for _ in range(4)), change(), return_exceptions=True)
        assert await desk.sign_ins.live(desk.user.id) == []
    with pytest.raises(AuthenticationError, match="changed at this moment"):
        await desk.begin()
    # Who came another way needs no password.
    await desk.sign_ins.begin(desk.user, CLIENT, "single_sign_on")


async def _someone_waits(database: Database) -> None:
    """Waits until a transaction waits for a row that another holds."""
    query = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

    async def waits() -> bool:
        async with database.session() as session:
            return await session.scalar(query) is not None

    await eventually(waits)


async def test_a_log_in_waits_for_a_password_that_is_being_changed(on_postgres: Desk) -> None:
    desk = on_postgres
    async with desk.database.transaction() as session:
        await session.execute(update(User).values(password_hash="another"))
        beginning = asyncio.create_task(desk.begin())
        await _someone_waits(desk.database)
        await end_sign_ins(session, desk.user.id, "password_changed")
    with pytest.raises(AuthenticationError, match="changed at this moment"):
        await beginning
    assert await desk.sign_ins.live(desk.user.id) == []


async def test_what_ends_all_sign_ins_sees_one_that_is_just_beginning(on_postgres: Desk) -> None:
    desk = on_postgres

    async def end() -> None:
        async with desk.database.transaction() as session:
            await end_sign_ins(session, desk.user.id, "disabled")

    async with desk.database.transaction() as session:
        # What `begin` holds while it is under way.
        await session.execute(select(User.id).with_for_update(read=True))
        session.add(
            SignIn(
                workspace_id=desk.user.workspace_id,
                user_id=desk.user.id,
                method="password",
                expires_at=desk.clock.now + LIFETIME,
            )
        )
        await session.flush()
        ending = asyncio.create_task(end())
        await _someone_waits(desk.database)
    await ending
    assert await desk.sign_ins.live(desk.user.id) == []


async def test_a_refresh_in_a_sign_in_that_is_just_ending_gets_nothing(on_postgres: Desk) -> None:
    desk = on_postgres
    issued = await desk.begin()
    async with desk.database.transaction() as session:
        await end_sign_ins(session, desk.user.id, "signed_out_everywhere")
        refreshing = asyncio.create_task(desk.refresh(issued))
        await _someone_waits(desk.database)
    with pytest.raises(InvalidToken, match="has ended"):
        await refreshing
    assert [row.used_at for row in await desk.rows()] == [None]


async def test_no_sign_in_begins_for_one_who_was_disabled_meanwhile(desk: Desk) -> None:
    async with desk.database.transaction() as session:
        await session.execute(update(User).values(disabled_at=desk.clock.now))
    for method in ("password", "single_sign_on"):
        with pytest.raises(AuthenticationError, match="disabled"):
            await desk.sign_ins.begin(desk.user, CLIENT, method)
    assert await desk.rows() == []


async def test_a_token_of_a_disabled_user_is_not_used_up(desk: Desk) -> None:
    issued = await desk.begin()
    async with desk.database.transaction() as session:
        await session.execute(update(User).values(disabled_at=desk.clock.now))
    with pytest.raises(InvalidToken, match="disabled"):
        await desk.refresh(issued)
    assert [row.used_at for row in await desk.rows()] == [None]


async def test_all_sign_ins_of_a_user_but_one_end_in_the_callers_transaction(desk: Desk) -> None:
    kept, *others = [await desk.begin() for _ in range(3)]
    ended = await desk.begin()
    await desk.sign_ins.end_by_refresh_token(ended.refresh_token, CLIENT)

    async def fail() -> None:
        async with desk.database.transaction() as session:
            await end_sign_ins(session, desk.user.id, "password_changed")
            raise Conflict("the caller's change came to nothing")

    with pytest.raises(Conflict):
        await fail()
    assert len(await desk.sign_ins.live(desk.user.id)) == 3
    async with desk.database.transaction() as session:
        await end_sign_ins(session, desk.user.id, "password_changed", but=kept.sign_in_id)
    assert [row.id for row in await desk.sign_ins.live(desk.user.id)] == [kept.sign_in_id]
    assert {(await desk.sign_in(each)).ended_because for each in others} == {"password_changed"}
    assert (await desk.sign_in(ended)).ended_because == "signed_out"
    async with desk.database.transaction() as session:
        await end_sign_ins(session, desk.user.id, "disabled")
    assert await desk.sign_ins.live(desk.user.id) == []


async def test_what_expired_long_ago_is_deleted_a_piece_at_a_log_in(desk: Desk) -> None:
    old = await desk.begin()
    last = await desk.refresh(old)
    async with desk.database.transaction() as session:
        row = await session.get_one(SignIn, old.sign_in_id)
        session.add_all(
            RefreshToken(
                workspace_id=row.workspace_id,
                sign_in_id=row.id,
                token_hash=uuid.uuid4().bytes,
                expires_at=row.expires_at,
                used_at=desk.clock.now,
            )
            for _ in range(600)
        )
    live = await desk.begin()
    desk.clock.now += LIFETIME + timedelta(days=6)
    await desk.begin()
    assert len(await desk.rows()) == 604
    with pytest.raises(TokenExpired):
        await desk.refresh(last)
    async with desk.database.transaction() as session:
        await session.execute(
            update(SignIn).where(SignIn.id == live.sign_in_id).values(expires_at=desk.clock.now + timedelta(days=9))
        )
    desk.clock.now += timedelta(days=2)
    await desk.begin()
    assert len(await desk.rows()) == 105
    await desk.sign_in(old)
    await desk.begin()
    assert len(await desk.rows()) == 4
    async with desk.database.session() as session:
        assert await session.get(SignIn, old.sign_in_id) is None
    assert (await desk.sign_in(live)).ended_at is None
