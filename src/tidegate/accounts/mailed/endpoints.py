"""Passwords, addresses and invitations over HTTP: `auth` is for people, `invitations` for who invites them."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Query, status

from tidegate.accounts.dependencies import BY_PASSWORD
from tidegate.accounts.mailed.dependencies import (
    INVITING,
    AcceptanceBody,
    AddressChangesDep,
    CallersInvitationsDep,
    ConfirmationBody,
    EmailChangeBody,
    ForgotBody,
    PasswordChangeBody,
    ResetBody,
    UsersPasswordsDep,
    get_inviter,
)
from tidegate.accounts.mailed.invitations import accept
from tidegate.accounts.mailed.schemas import InvitationForm, InvitationPage, InvitationQuery, InvitationView, Taken
from tidegate.accounts.sign_ins.dependencies import never_stored
from tidegate.accounts.users.dependencies import PasswordsDep
from tidegate.accounts.users.schemas import UserView
from tidegate.audit.dependencies import ActorDep, AnyoneDep
from tidegate.auth.dependencies import UserCaller
from tidegate.storage.dependencies import DatabaseDep

auth = APIRouter(prefix="/auth", tags=["accounts"], dependencies=[Depends(never_stored)])
invitations = APIRouter(prefix="/api/invitations", tags=["people"], dependencies=[Depends(get_inviter)])


@auth.post("/password/forgot", status_code=status.HTTP_202_ACCEPTED, dependencies=[BY_PASSWORD])
async def forgot(body: ForgotBody, users_passwords: UsersPasswordsDep, actor: AnyoneDep) -> Taken:
    """Sends a link for a new password, where there is such an account. The answer is the same where there is none."""
    users_passwords.forgot(body.email, actor)
    return Taken()


@auth.post("/password/reset", status_code=status.HTTP_204_NO_CONTENT, dependencies=[BY_PASSWORD])
async def reset(body: ResetBody, users_passwords: UsersPasswordsDep, actor: AnyoneDep) -> None:
    """Sets a new password by the token of an e-mail, and ends all sign-ins within a second. API keys stay."""
    await users_passwords.reset(body.token.get_secret_value(), body.password.get_secret_value(), actor)


@auth.post("/password", status_code=status.HTTP_204_NO_CONTENT, dependencies=[BY_PASSWORD])
async def change_password(
    body: PasswordChangeBody, caller: UserCaller, actor: ActorDep, users_passwords: UsersPasswordsDep
) -> None:
    """Changes the caller's password, and ends their other sign-ins within a second. API keys stay."""
    await users_passwords.change(caller, body.current, body.password.get_secret_value(), actor)


@auth.post("/email", status_code=status.HTTP_202_ACCEPTED, dependencies=[BY_PASSWORD])
async def change_email(body: EmailChangeBody, caller: UserCaller, actor: ActorDep, changes: AddressChangesDep) -> Taken:
    """Sends a link to the new address, and a notice to the old. The address is the account's once it is confirmed."""
    await changes.ask(caller, body.email, body.current, actor)
    return Taken()


@auth.post("/email/confirm", status_code=status.HTTP_204_NO_CONTENT)
async def confirm_email(body: ConfirmationBody, changes: AddressChangesDep, actor: AnyoneDep) -> None:
    """Makes a new address the account's by the token of an e-mail, and ends all sign-ins within a second."""
    await changes.confirm(body.token.get_secret_value(), actor)


@auth.post("/invitations/accept", status_code=status.HTTP_201_CREATED, dependencies=[BY_PASSWORD])
async def accept_invitation(
    body: AcceptanceBody, database: DatabaseDep, passwords: PasswordsDep, actor: AnyoneDep
) -> UserView:
    """Makes the user that an invitation is for, by the token of its e-mail."""
    token, password = body.token.get_secret_value(), body.password.get_secret_value()
    return await accept(database, passwords, token, password, actor)


@invitations.get("")
async def list_invitations(
    callers: CallersInvitationsDep, query: Annotated[InvitationQuery, Query()]
) -> InvitationPage:
    """Invitations that the caller may see, newest first. Their tokens are in their e-mails alone."""
    return await callers.page(query)


@invitations.post("", status_code=status.HTTP_201_CREATED, dependencies=INVITING)
async def invite(callers: CallersInvitationsDep, body: InvitationForm) -> InvitationView:
    """Sends an invitation, which works once, for 7 days. One that the address had to this workspace ends."""
    return await callers.create(body)


@invitations.delete("/{invitation_id}", status_code=status.HTTP_204_NO_CONTENT)
async def withdraw_invitation(callers: CallersInvitationsDep, invitation_id: uuid.UUID) -> None:
    """Ends an invitation."""
    await callers.withdraw(invitation_id)


@invitations.post("/{invitation_id}/send", dependencies=INVITING)
async def send_invitation_again(callers: CallersInvitationsDep, invitation_id: uuid.UUID) -> InvitationView:
    """Sends an invitation again, with a new link for 7 days. The old link ends."""
    return await callers.send_again(invitation_id)
