"""Second factors: set up, confirmed, asked for at a log-in, turned off, reset; and who proves again who they are.

Invariants:
- Nothing is set up, turned off or replaced without the password, whoever holds an access token; and, once there is a
  second factor, not without a code of it. An admin resets another's, and not their own.
- A log-in that gives a wrong password and one that gives a wrong code are answered alike where a code was sent. That a
  code is missing is told to who knew the password alone.
- One that is confirmed ends the user's other sign-ins; a log-in that was under way without it begins none.
- No connection of the database is held while a password is checked.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import delete, select

from tidegate.accounts.mailed import letters
from tidegate.accounts.models import SecondFactor, User
from tidegate.accounts.second_factor import totp
from tidegate.accounts.second_factor.codes import (
    MOST_WRONG_CODES,
    WARNED_AFTER,
    Judged,
    find_active,
    find_pending,
    remove,
    replace_recovery_codes,
    use_code,
)
from tidegate.accounts.second_factor.sealing import Sealed, Sealing
from tidegate.accounts.service import WRONG_WITH_CODE, locked_user, of_user
from tidegate.accounts.sign_ins.refresh_tokens import ENDED
from tidegate.accounts.sign_ins.service import Client, end_sign_ins, is_live
from tidegate.audit.trail import Actor, Event, note, write
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.errors import (
    AuthenticationError,
    Conflict,
    InvalidRequest,
    InvalidToken,
    NotFound,
    PermissionDenied,
    SecondFactorRequired,
)
from tidegate.ledger.entry import utc_now
from tidegate.limits.service import Changed, nothing_changed
from tidegate.mail.post import Post
from tidegate.storage.database import Database

ISSUER: Final = "Tidegate"
_CHANGED: Final = "The account was changed at this moment: try again."


class WrongCode(AuthenticationError):
    """A log-in whose password was right, and whose code was not."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A secret to be put into an app, shown once: as people type it, and as an app opens it."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)


class SecondFactors:
    """The second factors of a database's users. `changed` is awaited with a user's id after theirs changed.

    >>> begun = await second_factors.begin(caller, "the current password", actor)
    >>> codes = await second_factors.confirm(caller, "287082", actor)
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        sealing: Sealing,
        post: Post,
        *,
        changed: Changed = nothing_changed,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._sealing = sealing
        self._post = post
        self._changed = changed
        self._clock = clock

    async def pass_log_in(self, user: User, code: str | None, client: Client) -> uuid.UUID | None:
        """The second factor that a user who knew their password has passed; None where they have none.

        Raises `SecondFactorRequired` without a code, `WrongCode` for a wrong one.
        """
        async with self._database.session() as session:
            factor = await find_active(session, user.id)
        if factor is None:
            return None
        if code is None:
            raise SecondFactorRequired(
                "This account has a second factor: send its code too, as `code`: 6 digits, or a recovery code."
            )
        if not await self._use(user, factor, code, client.as_actor(user.id, user.email)):
            raise WrongCode(WRONG_WITH_CODE)
        return factor.id

    async def passes(self, user: User, code: str | None, actor: Actor) -> bool:
        """Whether a signed-in user who knew their password has none, or this code is of it, which uses it up."""
        async with self._database.session() as session:
            factor = await find_active(session, user.id)
        return factor is None or (code is not None and await self._use(user, factor, code, actor))

    async def require_code(self, user_id: uuid.UUID, code: str | None) -> None:
        """Raises `InvalidRequest` where one is needed, and there is none to judge."""
        if code is not None:
            return
        async with self._database.session() as session:
            if await find_active(session, user_id) is not None:
                raise InvalidRequest("You have a second factor: send its code too, as `code`.", param="code")

    async def prove(self, caller: Principal, password: str, code: str | None, actor: Actor) -> User:
        """The signed-in user, who knows their password, and has a code where they have a second factor.

        Raises `InvalidRequest`: of which of the two is wrong it says nothing.
        """
        assert caller.user_id is not None
        await self.require_code(caller.user_id, code)
        user, factor = await self._known(caller)
        is_right = (await self._passwords.verify(password, user.password_hash)).is_right
        if not is_right or not await self.passes(user, code, actor):
            event = Event("account.proof_refused", user.workspace_id, of_user(user), outcome="refused")
            await write(self._database, actor, event)
            what = "password is" if factor is None else "password or the code is"
            forgotten = "Where you never had a password, or forgot it: POST /auth/password/forgot."
            raise InvalidRequest(f"The {what} wrong. {forgotten}", param="password")
        return user

    async def begin(self, caller: Principal, password: str, actor: Actor) -> Begun:
        """A new secret, which counts for nothing before it is confirmed. One that waits for that is void.

        Raises `InvalidRequest` for a wrong password, `Conflict` where there is a second factor already, `Unavailable`
        where none can be kept.
        """
        user, factor = await self._known(caller)
        if factor is not None:
            raise _is_there()
        await self.prove(caller, password, None, actor)
        secret = totp.new_secret()
        sealed = self._sealing.seal(secret, user.id)
        async with self._database.transaction() as session:
            now = await locked_user(session, user.id)
            if now is None or now.disabled_at is not None or now.password_hash != user.password_hash:
                raise Conflict(_CHANGED)
            if await find_active(session, user.id) is not None:
                raise _is_there()
            await session.execute(delete(SecondFactor).where(SecondFactor.user_id == user.id))
            row = SecondFactor(
                workspace_id=now.workspace_id,
                user_id=now.id,
                sealed_secret=sealed.sealed,
                secret_kid=sealed.kid,
                created_at=self._clock(),
            )
            session.add(row)
            note(session, actor, Event("account.second_factor_begun", now.workspace_id, of_user(now)))
        return Begun(totp.as_text(secret), totp.uri(secret, user.email, ISSUER))

    async def confirm(self, caller: Principal, code: str, actor: Actor) -> Sequence[str]:
        """Turns the second factor on that was begun, and ends the user's other sign-ins. Returns the recovery codes.

        Raises `Conflict` where none was begun lately, `InvalidRequest` for a wrong code, and `InvalidToken` where the
        caller's sign-in ended: another's new password may have ended it, of which this worker is not told yet.
        """
        now = self._clock()
        async with self._database.transaction() as session:
            user = await locked_user(session, caller.user_id)
            if user is None or user.disabled_at is not None or not await is_live(session, caller.sign_in_id):
                raise InvalidToken(ENDED)
            factor = await find_pending(session, user.id, now)
            if factor is None:
                raise Conflict("There is no second factor to confirm: begin by POST /auth/second-factor.")
            secret = self._sealing.open(Sealed(factor.sealed_secret, factor.secret_kid), user.id)
            plain = code.replace(" ", "")
            step = None
            if secret is not None and totp.is_code(plain):
                step = totp.step_of(secret, plain, now.timestamp(), after=0)
            if step is None:
                raise InvalidRequest(
                    "The code is not the one that belongs here now: write the latest one, and check the clock of the "
                    "device that shows it.",
                    param="code",
                )
            factor.confirmed_at, factor.last_step = now, step
            codes = await replace_recovery_codes(session, user)
            await end_sign_ins(session, user.id, "second_factor_changed", but=caller.sign_in_id)
            note(session, actor, Event("account.second_factor_on", user.workspace_id, of_user(user)))
        await self._changed(user.id)
        self._post.outbox.say(letters.second_factor_on(user.email))
        return codes

    async def turn_off(self, caller: Principal, password: str, code: str, actor: Actor) -> None:
        """Takes the caller's second factor away.

        Raises `InvalidRequest` for a wrong password or code, `Conflict` where there is none.
        """
        user, factor = await self._proven(caller, password, code, actor)
        async with self._database.transaction() as session:
            await locked_user(session, user.id)
            if not await remove(session, user.id, factor.id):
                raise Conflict(_CHANGED)
            note(session, actor, Event("account.second_factor_off", user.workspace_id, of_user(user)))
        await self._changed(user.id)
        self._post.outbox.say(letters.second_factor_off(user.email))

    async def renew_recovery_codes(self, caller: Principal, password: str, code: str, actor: Actor) -> Sequence[str]:
        """New recovery codes in place of the old ones. Raises as `turn_off` does."""
        user, factor = await self._proven(caller, password, code, actor)
        async with self._database.transaction() as session:
            now = await locked_user(session, user.id)
            active = None if now is None else await find_active(session, user.id)
            if now is None or active is None or active.id != factor.id:
                raise Conflict(_CHANGED)
            codes = await replace_recovery_codes(session, now)
            note(session, actor, Event("account.recovery_codes_replaced", now.workspace_id, of_user(now)))
        self._post.outbox.say(letters.recovery_codes_replaced(user.email))
        return codes

    async def reset(self, user_id: uuid.UUID, actor: Actor, *, by: Principal | None = None) -> None:
        """Takes a user's second factor away for them, and ends their sign-ins. Twice is once. `by` is the admin.

        Raises `NotFound`, and `PermissionDenied` for an admin's own.
        """
        if by is not None and by.user_id == user_id:
            raise PermissionDenied(
                "Your own is turned off by DELETE /auth/second-factor, with your password and a code; where you have "
                "neither code nor recovery code, ask another admin."
            )
        async with self._database.transaction() as session:
            user = await locked_user(session, user_id)
            if user is None:
                raise NotFound(f"There is no user {user_id} that you may see.")
            was_on = await remove(session, user.id)
            if was_on:
                await end_sign_ins(session, user.id, "second_factor_changed")
                note(session, actor, Event("account.second_factor_reset", user.workspace_id, of_user(user)))
        # Also where nothing changed: an earlier telling may have been lost.
        await self._changed(user.id)
        if was_on:
            self._post.outbox.say(letters.second_factor_reset(user.email))

    async def _known(self, caller: Principal) -> tuple[User, SecondFactor | None]:
        assert caller.user_id is not None
        async with self._database.session() as session:
            user = (await session.scalars(select(User).where(User.id == caller.user_id))).one()
            return user, await find_active(session, user.id)

    async def _proven(self, caller: Principal, password: str, code: str, actor: Actor) -> tuple[User, SecondFactor]:
        _, factor = await self._known(caller)
        if factor is None:
            raise Conflict("You have no second factor: begin by POST /auth/second-factor.")
        return await self.prove(caller, password, code, actor), factor

    async def _use(self, user: User, factor: SecondFactor, code: str, actor: Actor) -> bool:
        """Whether the code was right. It is used, or counted as wrong, for good."""
        async with self._database.transaction() as session:
            judged = await use_code(session, factor, code, self._sealing, self._clock())
            if judged.means == "recovery_code":
                note(session, actor, Event("account.recovery_code_used", user.workspace_id, of_user(user)))
        self._tell(user, judged)
        return judged.means is not None

    def _tell(self, user: User, judged: Judged) -> None:
        if judged.means == "recovery_code":
            self._post.outbox.say(letters.recovery_code_used(user.email))
        elif judged.wrong_codes == WARNED_AFTER:
            self._post.outbox.say(letters.codes_are_guessed(user.email))
        elif judged.wrong_codes == MOST_WRONG_CODES:
            self._post.outbox.say(letters.codes_are_refused(user.email))


def _is_there() -> Conflict:
    return Conflict("You have a second factor already: turn it off before you set up another.")
