"""Sign-ins: from a log-in to a log-out, refreshed in between. What a user is given for proving who they are.

Invariants:
- An access token names its sign-in. One that ended, or a user who may not sign in, is refused by every worker within a
  second of its being told (`user:<id>`), whatever the token says of its own end.
- A sign-in begins only while the user is as they were when they proved who they are: a password that was changed, or
  an account that was disabled or got a second factor meanwhile, begins none.
- A refresh token that is used again ends its sign-in, but for the one just before the current within 10 s of its use:
  that is a race, which gets a 409, issues nothing and ends nothing.
- What ends a sign-in is committed before anything is raised or told.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, Self

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from tidegate.accounts.models import RefreshToken, SignIn, SignInMethod, User
from tidegate.accounts.second_factor.codes import find_active
from tidegate.accounts.sign_ins.refresh_tokens import (
    ENDED,
    Presented,
    Unused,
    add_token,
    delete_expired,
    find_presented,
    hash_of,
    is_refreshable,
    rotate,
)
from tidegate.audit.trail import Actor, Event, Subject, note, write
from tidegate.auth.tokens import AccessTokens
from tidegate.errors import AuthenticationError, Conflict, InvalidToken, NotFound, TidegateError, TokenExpired
from tidegate.http.context import request_context
from tidegate.ledger.entry import new_entry_id, utc_now
from tidegate.limits.service import Changed, nothing_changed
from tidegate.storage.database import Database
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

Because = Literal[
    "signed_out",
    "signed_out_everywhere",
    "reused",
    "password_changed",
    "email_changed",
    "disabled",
    "role_changed",
    "second_factor_changed",
]
"""Why a sign-in ended before it expired."""

_MOST_LISTED: Final = 100
_UNKNOWN: Final = "This is no refresh token of this gateway: sign in again."
_EXPIRED: Final = "This sign-in has expired: sign in again."
_REUSED: Final = "This refresh token was used before, so its sign-in has ended: sign in again."
_RACED: Final = "Another request used this refresh token a moment ago: go on with the tokens that it was given."


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request came from."""

    address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, request: Request) -> Self:
        context = request_context(request.scope)
        return cls(context.client_address, context.user_agent, context.request_id)

    def as_actor(self, user_id: uuid.UUID | None = None, email: str | None = None) -> Actor:
        """This user at this client as the audit trail names them; without one, nobody."""
        kind: Literal["user", "nobody"] = "nobody" if user_id is None else "user"
        return Actor(kind, user_id, email, self.address, self.user_agent, self.request_id)


@dataclass(frozen=True, slots=True)
class IssuedTokens:
    """What a client gets. `expires_in` and `refresh_expires_in` are seconds."""

    sign_in_id: uuid.UUID
    user_id: uuid.UUID
    expires_in: int
    refresh_expires_in: int
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


class SignIns:
    """The sign-ins of a database. `changed` is awaited with a user's id after one of theirs ended.

    One expires after `lifetime`, and earlier where it is not refreshed for `idle`.

    >>> issued = await sign_ins.begin(user, Client.of(request), "password")
    >>> issued = await sign_ins.refresh(issued.refresh_token, Client.of(request))
    """

    def __init__(
        self,
        database: Database,
        tokens: AccessTokens,
        *,
        lifetime: timedelta,
        idle: timedelta | None = None,
        changed: Changed = nothing_changed,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._lifetime = lifetime
        self._idle = idle or lifetime
        self._changed = changed
        self._clock = clock

    async def begin(
        self, user: User, client: Client, method: SignInMethod, *, second_factor: uuid.UUID | None = None
    ) -> IssuedTokens:
        """A sign-in of a user who proved just now who they are; by a password, with this second factor or none.

        Raises `AuthenticationError` where they were disabled, deleted or given another password or second factor
        meanwhile.
        """
        now = self._clock()
        sign_in = SignIn(
            id=new_entry_id(),
            workspace_id=user.workspace_id,
            user_id=user.id,
            method=method,
            created_at=now,
            expires_at=now + self._lifetime,
            client_address=client.address,
            user_agent=client.user_agent,
        )
        async with self._database.transaction() as session:
            await _require_unchanged(session, user, method, second_factor)
            await delete_expired(session, user.id, now)
            session.add(sign_in)
            await session.flush()
            expires_at = min(sign_in.expires_at, now + self._idle)
            refresh_token = await add_token(session, sign_in, expires_at)
            note(
                session,
                client.as_actor(user.id, user.email),
                Event(
                    "account.signed_in",
                    workspace_id=user.workspace_id,
                    subject=Subject("user", user.id, user.email),
                    details={"method": method, "sign_in_id": str(sign_in.id)},
                ),
            )
        return self._issued(Unused(sign_in.id, user.id, expires_at, refresh_token), now)

    async def note_refusal(self, email: str, client: Client, reason: str | None = None) -> None:
        """Writes down a log-in that was refused: the same for an address that somebody has and one that nobody has.

        `reason` is of one whose password was right.
        """
        details = {} if reason is None else {"reason": reason}
        subject = Subject("user", name=email.lower())
        event = Event("account.sign_in_refused", subject=subject, outcome="refused", details=details)
        await write(self._database, client.as_actor(), event)

    async def refresh(self, refresh_token: str, client: Client) -> IssuedTokens:
        """New tokens for a refresh token, which is used up.

        Raises `Conflict` for the loser of a race, `TokenExpired`, and `InvalidToken` for everything else; a reuse has
        ended the sign-in then.
        """
        token_hash = hash_of(refresh_token)
        if token_hash is None:
            raise InvalidToken(_UNKNOWN)
        now = self._clock()
        async with self._database.transaction() as session:
            rotated = await rotate(session, token_hash, now, self._idle)
            if rotated is None:
                presented = await find_presented(session, token_hash)
                refusal = _refusal(presented, now)
                if presented is not None and refusal is None:
                    await _end_reused(session, presented, client, now)
        if rotated is not None:
            return self._issued(rotated, now)
        if presented is not None and refusal is None:
            log.warning(
                "a refresh token was used again: its sign-in has ended",
                user_id=str(presented.user_id),
                sign_in_id=str(presented.sign_in_id),
                client_address=client.address,
            )
            await self._changed(presented.user_id)
        raise refusal or InvalidToken(_REUSED)

    async def end(self, user_id: uuid.UUID, sign_in_id: uuid.UUID, actor: Actor) -> None:
        """Ends one of a user's own sign-ins. Twice is once. Raises `NotFound`, for another's too."""
        async with self._database.transaction() as session:
            workspace_id = await session.scalar(
                select(SignIn.workspace_id).where(SignIn.id == sign_in_id, SignIn.user_id == user_id)
            )
            if workspace_id is None:
                raise NotFound("There is no such sign-in of yours: GET /auth/sign-ins lists them.")
            if await _end_one(session, sign_in_id, "signed_out", self._clock()):
                _note_sign_out(session, actor, workspace_id, sign_in_id)
        await self._changed(user_id)

    async def end_all(self, user_id: uuid.UUID, workspace_id: uuid.UUID, actor: Actor) -> None:
        """Ends every sign-in of a user."""
        async with self._database.transaction() as session:
            await end_sign_ins(session, user_id, "signed_out_everywhere")
            event = Event(
                "account.signed_out_everywhere",
                workspace_id=workspace_id,
                subject=Subject("user", actor.id, actor.name),
            )
            note(session, actor, event)
        await self._changed(user_id)

    async def end_by_refresh_token(self, refresh_token: str, client: Client) -> None:
        """Ends the sign-in that this token is of, used or not. A token that nobody was given ends nothing."""
        token_hash = hash_of(refresh_token)
        if token_hash is not None:
            await self.end_by_token_hash(token_hash, client)

    async def end_by_token_hash(self, token_hash: bytes, client: Client) -> None:
        """As `end_by_refresh_token`, for who kept no more of it than this."""
        query = (
            select(SignIn.id, SignIn.workspace_id, User.id.label("user_id"), User.email)
            .join(RefreshToken, RefreshToken.sign_in_id == SignIn.id)
            .join(User, User.id == SignIn.user_id)
            .where(RefreshToken.token_hash == token_hash)
        )
        async with self._database.transaction() as session:
            found = (await session.execute(query)).one_or_none()
            if found is None:
                return
            if await _end_one(session, found.id, "signed_out", self._clock()):
                _note_sign_out(session, client.as_actor(found.user_id, found.email), found.workspace_id, found.id)
        await self._changed(found.user_id)

    async def live(self, user_id: uuid.UUID) -> Sequence[SignIn]:
        """A user's sign-ins that have neither ended nor expired, the newest first: a hundred at most."""
        query = select(SignIn).where(
            SignIn.user_id == user_id, SignIn.ended_at.is_(None), is_refreshable(self._clock())
        )
        async with self._database.session() as session:
            return (await session.scalars(query.order_by(SignIn.id.desc()).limit(_MOST_LISTED))).all()

    def _issued(self, given: Unused, now: datetime) -> IssuedTokens:
        left_s = max(1, int((given.expires_at - now).total_seconds()))
        # No access token says that it lives longer than its sign-in.
        expires_in = min(self._tokens.lifetime_s, left_s)
        access_token = self._tokens.issue(given.user_id, given.sign_in_id, lifetime_s=expires_in)
        return IssuedTokens(given.sign_in_id, given.user_id, expires_in, left_s, access_token, given.refresh_token)


async def end_sign_ins(
    session: AsyncSession, user_id: uuid.UUID, because: Because, *, but: uuid.UUID | None = None
) -> None:
    """Ends all live sign-ins of a user but one, in the caller's transaction.

    After the commit the caller tells `user_topic(user_id)`: access tokens end with that, within a second.
    """
    # One that is beginning holds the user's row: it is seen below, or sees what was changed here.
    await session.execute(select(User.id).where(User.id == user_id).with_for_update())
    ending = update(SignIn).where(SignIn.user_id == user_id, SignIn.ended_at.is_(None))
    if but is not None:
        ending = ending.where(SignIn.id != but)
    ending = ending.values(ended_at=utc_now(), ended_because=because)
    await session.execute(ending, execution_options={"synchronize_session": False})


async def is_live(session: AsyncSession, sign_in_id: uuid.UUID | None) -> bool:
    """Whether a sign-in has not ended. With its user locked, it does not end by what happens to them meanwhile."""
    query = select(SignIn.id).where(SignIn.id == sign_in_id, SignIn.ended_at.is_(None))
    return await session.scalar(query) is not None


async def _require_unchanged(
    session: AsyncSession, user: User, method: SignInMethod, second_factor: uuid.UUID | None
) -> None:
    query = select(User.password_hash, User.disabled_at).where(User.id == user.id).with_for_update(read=True)
    now = (await session.execute(query)).one_or_none()
    if now is None or now.disabled_at is not None:
        raise AuthenticationError("This account is disabled: ask an admin.")
    if method == "password" and now.password_hash != user.password_hash:
        raise AuthenticationError("The password of this account was changed at this moment: sign in again.")
    if method == "password":
        # Read with the user's row held: one that is being confirmed has ended this sign-in after, or is seen here.
        factor = await find_active(session, user.id)
        if (None if factor is None else factor.id) != second_factor:
            raise AuthenticationError("The second factor of this account was changed at this moment: sign in again.")


def _refusal(presented: Presented | None, now: datetime) -> TidegateError | None:
    """Why a token that could not be used is refused; None for a reuse, which ends its sign-in."""
    if presented is None:
        return InvalidToken(_UNKNOWN)
    if presented.sign_in_ended_at is not None:
        return InvalidToken(ENDED)
    if presented.user_disabled_at is not None:
        return InvalidToken("The account of this sign-in is disabled: ask an admin.")
    if presented.expires_at <= now:
        return TokenExpired(_EXPIRED)
    if presented.used_at is None or presented.is_of_a_race(now):
        return Conflict(_RACED)
    return None


async def _end_reused(session: AsyncSession, presented: Presented, client: Client, now: datetime) -> None:
    if not await _end_one(session, presented.sign_in_id, "reused", now):
        return
    event = Event(
        "account.refresh_token_reused",
        workspace_id=presented.workspace_id,
        subject=Subject("user", presented.user_id, presented.email),
        outcome="refused",
        details={"sign_in_id": str(presented.sign_in_id)},
    )
    # Whether the user or a thief came second is not known.
    note(session, client.as_actor(), event)


async def _end_one(session: AsyncSession, sign_in_id: uuid.UUID, because: Because, now: datetime) -> bool:
    """Whether it was live until now."""
    ending = (
        update(SignIn)
        .where(SignIn.id == sign_in_id, SignIn.ended_at.is_(None))
        .values(ended_at=now, ended_because=because)
        .returning(SignIn.id)
    )
    ended = await session.execute(ending, execution_options={"synchronize_session": False})
    return ended.scalar_one_or_none() is not None


def _note_sign_out(session: AsyncSession, actor: Actor, workspace_id: uuid.UUID, sign_in_id: uuid.UUID) -> None:
    event = Event(
        "account.signed_out",
        workspace_id=workspace_id,
        subject=Subject("user", actor.id, actor.name),
        details={"sign_in_id": str(sign_in_id)},
    )
    note(session, actor, event)
