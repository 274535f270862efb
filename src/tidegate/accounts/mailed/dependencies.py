"""What is sent by e-mail, as routes ask for it."""

from inspect import Parameter, Signature
from typing import Annotated, Generic, TypeVar

from fastapi import Depends
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.dependencies import Sensitive, SensitiveRoute, TriesDep
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
from tidegate.accounts.sign_ins.dependencies import UserChangedDep
from tidegate.accounts.tries import SensitiveName, Tries
from tidegate.accounts.users.dependencies import PasswordsDep
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import Caller, UserCaller
from tidegate.auth.principal import Principal
from tidegate.errors import PermissionDenied
from tidegate.mail.dependencies import PostDep
from tidegate.storage.dependencies import DatabaseDep

Body = TypeVar("Body", bound=BaseModel)


class SensitiveUserRoute(Sensitive, Generic[Body]):
    """A dependency that gives a route of signed-in users its body, once this try of theirs was counted.

    A body that is not valid is a 422 as ever, and no try.
    """

    def __init__(self, name: SensitiveName, body: type[Body]) -> None:
        super().__init__(name)
        # What FastAPI reads instead of `__call__`'s own: a type variable would not tell it what to parse.
        given = {"body": body, "request": Request, "response": Response, "tries": TriesDep, "caller": UserCaller}
        self.__signature__ = Signature(
            [Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation) for name, annotation in given.items()]
        )

    async def __call__(
        self, *, body: Body, request: Request, response: Response, tries: Tries, caller: Principal
    ) -> Body:
        await self.count(str(caller.user_id), request, response, tries)
        return body


ForgotBody = Annotated[Forgot, Depends(SensitiveRoute("forgot", Forgot))]
ResetBody = Annotated[Reset, Depends(SensitiveRoute("reset", Reset))]
AcceptanceBody = Annotated[Acceptance, Depends(SensitiveRoute("accept", Acceptance))]
ConfirmationBody = Annotated[EmailConfirmation, Depends(SensitiveRoute("confirm-email", EmailConfirmation))]
PasswordChangeBody = Annotated[PasswordChange, Depends(SensitiveUserRoute("change-password", PasswordChange))]
EmailChangeBody = Annotated[EmailChange, Depends(SensitiveUserRoute("change-email", EmailChange))]


def get_users_passwords(
    database: DatabaseDep, passwords: PasswordsDep, post: PostDep, changed: UserChangedDep
) -> UsersPasswords:
    return UsersPasswords(database, passwords, post, changed=changed)


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


INVITING = [Depends(SensitiveInviting("invite"))]


def get_callers_invitations(
    database: DatabaseDep, caller: Inviter, actor: ActorDep, post: PostDep
) -> CallersInvitations:
    return CallersInvitations(database, caller, actor, post)


CallersInvitationsDep = Annotated[CallersInvitations, Depends(get_callers_invitations)]
