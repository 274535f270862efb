"""Users and workspaces as routes ask for them."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.accounts.sign_ins.dependencies import UserChangedDep
from tidegate.accounts.users.service import CallersUsers
from tidegate.accounts.users.workspaces import CallersWorkspaces
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.dependencies import Caller, UserCaller
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.errors import PermissionDenied
from tidegate.settings import Settings
from tidegate.storage.dependencies import DatabaseDep


def get_passwords(request: Request) -> Passwords:
    authenticator: Authenticator = request.state.authenticator
    return authenticator.passwords


async def get_people_reader(caller: Caller) -> Principal:
    """Who may read of people: a signed-in user, or a key with scope `manage`. Raises `PermissionDenied`."""
    if caller.key_id is not None and "manage" not in caller.scopes:
        raise PermissionDenied("This API key lacks the scope 'manage', which this route needs.")
    return caller


async def get_admin(caller: UserCaller) -> Principal:
    """An admin who is signed in. Raises `PermissionDenied`, for every API key too."""
    if caller.role != "admin":
        raise PermissionDenied("This route takes an admin: ask one.")
    return caller


Reader = Annotated[Principal, Depends(get_people_reader)]


def get_callers_users(
    request: Request, database: DatabaseDep, caller: Reader, actor: ActorDep, changed: UserChangedDep
) -> CallersUsers:
    settings: Settings = request.state.settings
    days = settings.auth.initial_password_days
    return CallersUsers(database, caller, actor, changed=changed, initial_password_days=days)


def get_callers_workspaces(database: DatabaseDep, caller: Reader, actor: ActorDep) -> CallersWorkspaces:
    return CallersWorkspaces(database, caller, actor)


PasswordsDep = Annotated[Passwords, Depends(get_passwords)]
CallersUsersDep = Annotated[CallersUsers, Depends(get_callers_users)]
CallersWorkspacesDep = Annotated[CallersWorkspaces, Depends(get_callers_workspaces)]
