"""A user's e-mail address, changed: asked for by who knows the password, and done by who reads the new address.

Whoever asks learns nothing of who else has an account: an address that is taken is answered as a free one is, and gets
no e-mail.
"""

from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from tidegate.accounts.mailed import letters
from tidegate.accounts.mailed.passwords import Current, UsersPasswords
from tidegate.accounts.mailed.tokens import add_token, find_live, rename_maker, take, unusable, withdraw_of_user
from tidegate.accounts.models import MailedToken, User
from tidegate.accounts.service import locked_user, of_user
from tidegate.accounts.sign_ins.service import end_sign_ins
from tidegate.audit.trail import Actor, Event, note
from tidegate.auth.principal import Principal
from tidegate.errors import Conflict, InvalidRequest
from tidegate.limits.service import Changed, nothing_changed
from tidegate.mail.post import Post
from tidegate.storage.database import Database


class AddressChanges:
    """Changes of users' addresses. `changed` is awaited with a user's id after their sign-ins ended.

    >>> await changes.ask(caller, "new@example.com", Current("the current password"), actor)
    >>> await changes.confirm(token, actor)
    """

    def __init__(
        self, database: Database, passwords: UsersPasswords, post: Post, *, changed: Changed = nothing_changed
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._post = post
        self._changed = changed

    async def ask(self, caller: Principal, email: str, current: Current, actor: Actor) -> None:
        """Sends a link to the new address, and a notice to the old.

        Raises `InvalidRequest` for a wrong password or code, or the address that it is already, `MailRefused` where no
        e-mail can be sent.
        """
        user = await self._passwords.require_password(caller, current, actor, Event("account.email_change_asked"))
        email = email.lower()
        if user.email == email:
            raise InvalidRequest("This is the address of your account already.", param="email")
        self._post.require_ready()
        token = None
        async with self._database.transaction() as session:
            now = await locked_user(session, user.id)
            if now is None or now.disabled_at is not None or now.password_hash != user.password_hash:
                raise Conflict("The account was changed at this moment: sign in again.")
            await withdraw_of_user(session, user.id, "email_change")
            is_taken = await session.scalar(select(User.id).where(User.email == email)) is not None
            if not is_taken:
                row = MailedToken(workspace_id=now.workspace_id, purpose="email_change", user_id=now.id, email=email)
                token = add_token(session, row)
            event = Event("account.email_change_asked", now.workspace_id, of_user(now), details={"to": email})
            note(session, actor, replace(event, outcome="refused" if is_taken else "done"))
        if token is not None:
            self._post.outbox.say(letters.email_change(email, self._post.links.to("confirm-email", token)))
        self._post.outbox.say(letters.email_change_asked(user.email, email))

    async def confirm(self, token: str, actor: Actor) -> None:
        """Makes the new address the account's, and ends all its sign-ins.

        Raises `InvalidRequest` for a token that does not work, `Conflict` where the address was taken meanwhile.
        """
        async with self._database.session() as session:
            row = await find_live(session, token, "email_change")
        try:
            async with self._database.transaction() as session:
                user = await locked_user(session, row.user_id)
                await take(session, token, "email_change")
                if user is None or user.disabled_at is not None:
                    raise unusable()
                old, user.email = user.email, row.email
                await session.flush()
                await withdraw_of_user(session, user.id)
                await rename_maker(session, old, user.email)
                await end_sign_ins(session, user.id, "email_changed")
                details = {"email": {"from": old, "to": user.email}}
                actor = replace(actor, kind="user", id=user.id, name=user.email)
                note(session, actor, Event("account.email_changed", user.workspace_id, of_user(user), details=details))
        except IntegrityError:
            raise Conflict("Another account has this address by now.", param="email") from None
        await self._changed(user.id)
        self._post.outbox.say(letters.email_changed(old, user.email))
