"""Passwords that were forgotten, and passwords that are changed by who knows them.

Whoever asks for a new password learns nothing: the answer comes before anything is looked up, and the look-up, the
token and the e-mail are one errand of the outbox, put for every address alike. A new password ends sign-ins, and every
link that was sent before it.
"""

from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.mailed import letters
from tidegate.accounts.mailed.tokens import add_token, find_live, take, unusable, withdraw_of_user
from tidegate.accounts.models import Identity, MailedToken, User
from tidegate.accounts.second_factor.service import SecondFactors
from tidegate.accounts.service import locked_user, of_user, replace_password
from tidegate.audit.trail import Actor, Event, Subject, note, write
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.errors import Conflict, InvalidRequest, ValidationFailed
from tidegate.limits.service import Changed, nothing_changed
from tidegate.mail.message import Message
from tidegate.mail.outbox import Errand
from tidegate.mail.post import Post
from tidegate.storage.database import Database


@dataclass(frozen=True, slots=True)
class Current:
    """What a signed-in user proves who they are by. The code is of a second factor."""

    password: str = field(repr=False)
    code: str | None = field(default=None, repr=False)


class UsersPasswords:
    """The passwords of a database's users. `changed` is awaited with a user's id after their sign-ins ended.

    >>> users_passwords.forgot("ada@example.com", actor)
    >>> await users_passwords.reset(token, "a better password", actor)
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        second_factors: SecondFactors,
        post: Post,
        *,
        changed: Changed = nothing_changed,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._second_factors = second_factors
        self._post = post
        self._changed = changed

    def forgot(self, email: str, actor: Actor) -> None:
        """Sends a link to this address if it is that of an account that a password may open."""
        self._post.outbox.put(Errand("password_reset", partial(self._write_reset, email, actor)))

    async def reset(self, token: str, password: str, actor: Actor) -> None:
        """Sets a new password and ends all sign-ins of its user.

        Raises `InvalidRequest` for a token that does not work, `ValidationFailed` for a password that is short, common
        or the one that was given to begin with: the token works on then.
        """
        async with self._database.session() as session:
            row = await find_live(session, token, "password_reset")
            owner = await session.get(User, row.user_id)
        if owner is None:
            raise unusable()
        password_hash = await self._choose(owner, password)
        async with self._database.transaction() as session:
            user = await locked_user(session, row.user_id)
            await take(session, token, "password_reset")
            if user is None or user.disabled_at is not None or user.email != row.email:
                raise unusable()
            actor = replace(actor, kind="user", id=user.id, name=user.email)
            await replace_password(session, user, password_hash)
            note(session, actor, Event("account.password_reset", user.workspace_id, of_user(user)))
        await self._changed(user.id)
        self._post.outbox.say(letters.password_changed(user.email))

    async def change(self, caller: Principal, current: Current, password: str, actor: Actor) -> None:
        """Sets a new password of a signed-in user, and ends their other sign-ins.

        Raises `InvalidRequest` for a wrong current password or code, `ValidationFailed` for a new one that is short,
        common or the one that was given to begin with, `Conflict` where it was changed at the same moment.
        """
        user = await self.require_password(caller, current, actor, Event("account.password_changed"))
        password_hash = await self._choose(user, password)
        async with self._database.transaction() as session:
            now = await locked_user(session, user.id)
            if now is None or now.password_hash != user.password_hash:
                raise Conflict("The password was changed at this moment: sign in with the new one.")
            await replace_password(session, now, password_hash, but=caller.sign_in_id)
            note(session, actor, Event("account.password_changed", now.workspace_id, of_user(now)))
        await self._changed(user.id)
        self._post.outbox.say(letters.password_changed(user.email))

    async def require_password(self, caller: Principal, current: Current, actor: Actor, event: Event) -> User:
        """The signed-in user, who knows their password, and has a code where they have a second factor.

        `event` is what is written down where they do not. Raises `InvalidRequest`.
        """
        assert caller.user_id is not None
        await self._second_factors.require_code(caller.user_id, current.code)
        async with self._database.session() as session:
            user = await session.get_one(User, caller.user_id)
        verdict = await self._passwords.verify(current.password, user.password_hash)
        if not verdict.is_right or not await self._second_factors.passes(user, current.code, actor):
            refused = replace(event, workspace_id=user.workspace_id, subject=of_user(user), outcome="refused")
            await write(self._database, actor, refused)
            what = "The current password is" if current.code is None else "The current password or the code is"
            raise InvalidRequest(
                f"{what} wrong. Where you never had a password, or forgot it: POST /auth/password/forgot.",
                param="current_password",
            )
        return user

    async def _choose(self, user: User, password: str) -> str:
        """What to store. A password that somebody else chose for the user is no choice of theirs (OWASP ASVS 5, 6.4.1).

        Raises `ValidationFailed`.
        """
        is_given = user.password_ends_at is not None
        if is_given and (await self._passwords.verify(password, user.password_hash)).is_right:
            fault = "this is the password that you were given to begin with: choose another one"
            raise ValidationFailed(f"password: {fault}.", [{"loc": ["body", "password"], "message": fault}])
        return await self._passwords.choose(password, email=user.email)

    async def _write_reset(self, email: str, actor: Actor) -> Message | None:
        self._post.require_ready()
        async with self._database.transaction() as session:
            user = await session.scalar(select(User).where(User.email == email).with_for_update())
            event = Event("account.password_forgotten", subject=Subject("user", None, email), outcome="refused")
            if user is not None:
                event = replace(event, workspace_id=user.workspace_id, subject=of_user(user))
            if user is None or not await _may_have_a_password(session, user):
                note(session, actor, event)
                return None
            await withdraw_of_user(session, user.id, "password_reset")
            row = MailedToken(
                workspace_id=user.workspace_id, purpose="password_reset", user_id=user.id, email=user.email
            )
            token = add_token(session, row)
            note(session, actor, replace(event, outcome="done"))
        return letters.password_reset(user.email, self._post.links.to("reset-password", token))


async def _may_have_a_password(session: AsyncSession, user: User) -> bool:
    """Not one who is disabled, nor one who comes by single sign-on alone: its provider says whether they may."""
    if user.disabled_at is not None:
        return False
    return user.password_hash is not None or not await session.scalar(
        select(exists().where(Identity.user_id == user.id))
    )
