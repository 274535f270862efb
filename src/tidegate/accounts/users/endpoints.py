"""Users and workspaces over HTTP. Who may call hangs on the routes; whom they may see is the services'."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Query, status

from tidegate.accounts.second_factor.dependencies import SecondFactorsDep
from tidegate.accounts.users.dependencies import (
    CallersUsersDep,
    CallersWorkspacesDep,
    PasswordsDep,
    get_admin,
    get_people_reader,
)
from tidegate.accounts.users.schemas import (
    ChangedUser,
    UserForm,
    UserPage,
    UserQuery,
    UserView,
    WorkspaceForm,
    WorkspacePage,
    WorkspaceQuery,
    WorkspaceView,
)
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import UserCaller

users = APIRouter(prefix="/api/users", tags=["people"], dependencies=[Depends(get_people_reader)])
workspaces = APIRouter(prefix="/api/workspaces", tags=["people"], dependencies=[Depends(get_people_reader)])
ADMINS = [Depends(get_admin)]


@users.get("")
async def list_users(callers: CallersUsersDep, query: Annotated[UserQuery, Query()]) -> UserPage:
    """Users that the caller may see, newest first: an admin all, a key those of its workspace, a member themselves."""
    return await callers.page(query)


@users.post("", status_code=status.HTTP_201_CREATED, dependencies=ADMINS)
async def create_user(callers: CallersUsersDep, passwords: PasswordsDep, body: UserForm) -> UserView:
    """Creates a user. Without a password they get one by POST /auth/password/forgot."""
    return await callers.create(body, passwords)


@users.get("/{user_id}")
async def get_user(callers: CallersUsersDep, user_id: uuid.UUID) -> UserView:
    """One user."""
    return await callers.find(user_id)


@users.patch("/{user_id}", dependencies=ADMINS)
async def change_user(callers: CallersUsersDep, user_id: uuid.UUID, body: ChangedUser) -> UserView:
    """Changes a user's role or workspace, disables or enables them. It holds within a second.

    Who is disabled loses their sign-ins and the use of their API keys; enabled again they have their keys, and sign in
    anew. Who moves or gets another role signs in again; their API keys stay in the workspace that they are of.
    """
    return await callers.change(user_id, body)


@users.post("/{user_id}/sign-out", status_code=status.HTTP_204_NO_CONTENT, dependencies=ADMINS)
async def sign_user_out(callers: CallersUsersDep, user_id: uuid.UUID) -> None:
    """Ends all sign-ins of a user, within a second. Their API keys stay."""
    await callers.sign_out(user_id)


@users.delete("/{user_id}/second-factor", status_code=status.HTTP_204_NO_CONTENT, dependencies=ADMINS)
async def reset_second_factor(
    user_id: uuid.UUID, caller: UserCaller, actor: ActorDep, second_factors: SecondFactorsDep
) -> None:
    """Takes another user's second factor away, who lost it, and ends their sign-ins, within a second."""
    await second_factors.reset(user_id, actor, by=caller)


@workspaces.get("")
async def list_workspaces(callers: CallersWorkspacesDep, query: Annotated[WorkspaceQuery, Query()]) -> WorkspacePage:
    """Workspaces that the caller may see, newest first: an admin all, whoever else their own."""
    return await callers.page(query)


@workspaces.post("", status_code=status.HTTP_201_CREATED, dependencies=ADMINS)
async def create_workspace(callers: CallersWorkspacesDep, body: WorkspaceForm) -> WorkspaceView:
    """Creates a workspace, with nobody in it."""
    return await callers.create(body)


@workspaces.patch("/{workspace_id}", dependencies=ADMINS)
async def rename_workspace(
    callers: CallersWorkspacesDep, workspace_id: uuid.UUID, body: WorkspaceForm
) -> WorkspaceView:
    """Gives a workspace another name; `default` keeps its own."""
    return await callers.rename(workspace_id, body)
