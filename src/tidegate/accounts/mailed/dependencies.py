"""What is sent by e-mail, as routes ask for it."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.dependencies import BY_PASSWORD, Sensitive, SensitiveRoute, TriesDep
from tidegate.accounts.mailed.addresses import AddressChanges
from tidegate.accounts.mailed.invitations import CallersInvitations
from tidegate.accounts.mailed.passwords import UsersPasswords
from tidegate.accounts.mailed.schemas import (
    Acceptance,
    EmailChange,
    EmailConfirmation,
    Forgot,
    PasswordChange,
    Reset,
)
from tidegate.accounts.second_factor.dependencies import SecondFactorsDep
from tidegate.accounts.sign_ins.dependencies import UserChangedDep
from tidegate.accounts.users.dependencies import PasswordsDep
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import Caller
from tidegate.auth.principal import Principal
from tidegate.errors import PermissionDenied
from tidegate.mail.dependencies import PostDep
from tidegate.storage.dependencies import DatabaseDep

ForgotBody = Annotated[Forgot, Depends(SensitiveRoute("forgot", Forgot))]
ResetBody = Annotated[Reset, Depends(SensitiveRoute("reset", Reset))]
AcceptanceBody = Annotated[Acceptance, Depends(SensitiveRoute("accept", Acceptance))]
ConfirmationBody = Annotated[EmailConfirmation, Depends(SensitiveRoute("confirm-email", EmailConfirmation))]
PasswordChangeBody = Annotated[PasswordChange, Depends(SensitiveRoute("change-password", PasswordChange))]
EmailChangeBody = Annotated[EmailChange, Depends(SensitiveRoute("change-email", EmailChange))]


def get_users_passwords(
    database: DatabaseDep,
    passwords: PasswordsDep,
    second_factors: SecondFactorsDep,
    post: PostDep,
    changed: UserChangedDep,
) -> UsersPasswords:
    return UsersPasswords(database, passwords, second_factors, post, changed=changed)


UsersPasswordsDep = Annotated[UsersPasswords, Depends(get_users_passwords)]


def get_address_changes(
    database: DatabaseDep, users_passwords: UsersPasswordsDep, post: PostDep, changed: UserChangedDep
) -> AddressChanges:
    return AddressChanges(database, users_passwords, post, changed=changed)


AddressChangesDep = Annotated[AddressChanges, Depends(get_address_changes)]


async def get_inviter(caller: Caller) -> Principal:
    """Who may invite: an admin who is signed in, or a key with scope `manage`. Raises `PermissionDenied`."""
    if "manage" not in caller.scopes:
        raise PermissionDenied("Inviting people takes an admin, or a key with the scope 'manage'.")
    return caller


Inviter = Annotated[Principal, Depends(get_inviter)]


class SensitiveInviting(Sensitive):
    """A dependency that counts an e-mail that a caller has sent to whom they name."""

    async def __call__(self, caller: Inviter, request: Request, response: Response, tries: TriesDep) -> None:
        await self.count(str(caller.key_id or caller.user_id), request, response, tries)


# Who accepts an invitation chooses a password.
INVITING = [BY_PASSWORD, Depends(SensitiveInviting("invite"))]


def get_callers_invitations(
    database: DatabaseDep, caller: Inviter, actor: ActorDep, post: PostDep
) -> CallersInvitations:
    return CallersInvitations(database, caller, actor, post)


CallersInvitationsDep = Annotated[CallersInvitations, Depends(get_callers_invitations)]
