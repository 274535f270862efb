"""What is sent by e-mail, as routes take and show it. A token is in no answer."""

import uuid
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from sqlalchemy import ColumnElement, and_

from tidegate.accounts.mailed.passwords import Current
from tidegate.accounts.models import MailedToken
from tidegate.accounts.schemas import Code, CurrentPassword, Email, Input, NewPassword
from tidegate.auth.principal import Role
from tidegate.ledger.entry import utc_now
from tidegate.limits.schemas import Id

InvitationState = Literal["open", "accepted", "expired", "withdrawn"]

# Longer than any of ours, and short enough to look for.
MailedSecret = Annotated[SecretStr, Field(min_length=1, max_length=128)]


class Forgot(Input):
    email: Email


class Reset(Input):
    """A new password, by the token of an e-mail."""

    token: MailedSecret
    password: NewPassword


class PasswordChange(Input):
    """A new password. `code` is of the second factor, where there is one."""

    current_password: CurrentPassword
    password: NewPassword
    code: Code | None = None

    @property
    def current(self) -> Current:
        return _current(self.current_password, self.code)


class EmailChange(Input):
    """A new address. `code` is of the second factor, where there is one."""

    email: Email
    current_password: CurrentPassword
    code: Code | None = None

    @property
    def current(self) -> Current:
        return _current(self.current_password, self.code)


class EmailConfirmation(Input):
    token: MailedSecret


class Acceptance(Input):
    """The password of the new account, by the token of an invitation."""

    token: MailedSecret
    password: NewPassword


class InvitationForm(Input):
    """Whom to invite, to be what; without a workspace to the caller's."""

    email: Email
    role: Role = "member"
    workspace_id: Id | None = None


class InvitationQuery(BaseModel):
    """Which invitations to list. `after` is the last answer's `next`."""

    model_config = ConfigDict(extra="forbid")

    email: Email | None = None
    workspace_id: uuid.UUID | None = None
    state: InvitationState | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: uuid.UUID | None = None


class InvitationView(BaseModel):
    """An invitation as it stands. `made_by` is an address or a key's prefix, null where the command made it."""

    id: uuid.UUID
    email: str
    role: Role
    workspace_id: uuid.UUID
    state: InvitationState
    made_by: str | None
    created_at: datetime
    expires_at: datetime

    @classmethod
    def of(cls, row: MailedToken) -> Self:
        given = {name: getattr(row, name) for name in cls.model_fields if name != "state"}
        return cls(state=_state(row), **given)


class InvitationPage(BaseModel):
    """Invitations, newest first. `next` asks for the page after this one; null on the last."""

    data: list[InvitationView]
    next: uuid.UUID | None


class Taken(BaseModel):
    """What was asked for is under way, or is not: nobody who asks is told."""


def _current(password: SecretStr, code: SecretStr | None) -> Current:
    return Current(password.get_secret_value(), None if code is None else code.get_secret_value())


def state_of(state: InvitationState, now: datetime) -> ColumnElement[bool]:
    """What an invitation in this state looks like."""
    if state == "accepted":
        return MailedToken.used_at.is_not(None)
    if state == "withdrawn":
        return MailedToken.withdrawn_at.is_not(None)
    unused = and_(MailedToken.used_at.is_(None), MailedToken.withdrawn_at.is_(None))
    return and_(unused, MailedToken.expires_at > now if state == "open" else MailedToken.expires_at <= now)


def _state(row: MailedToken) -> InvitationState:
    if row.used_at is not None:
        return "accepted"
    if row.withdrawn_at is not None:
        return "withdrawn"
    return "open" if row.expires_at > utc_now() else "expired"
