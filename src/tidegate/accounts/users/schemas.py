"""Users and workspaces as `/api/users` and `/api/workspaces` take and show them. No password is in an answer."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tidegate.accounts.models import User, Workspace
from tidegate.accounts.schemas import Email, Input, Name, NewPassword
from tidegate.auth.principal import Role
from tidegate.limits.schemas import Id, NeverNull

UserState = Literal["active", "disabled"]


class UserForm(Input):
    """A user to create; without a workspace in the caller's. Without a password they ask for one: `forgot`."""

    email: Email
    role: Role = "member"
    workspace_id: Id | None = None
    password: NewPassword | None = None


class ChangedUser(Input):
    """What may change of a user."""

    role: Annotated[Role | None, NeverNull()] = None
    workspace_id: Annotated[Id | None, NeverNull()] = None
    disabled: Annotated[bool | None, NeverNull()] = None

    @field_validator("role", "workspace_id", "disabled", mode="before")
    @classmethod
    def _is_given_or_left_out(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("must not be null: leave out what stays")
        return value

    @property
    def may_end_an_admin(self) -> bool:
        """Whether it could take an admin away, where the user is one."""
        return self.role == "member" or self.disabled is True


class UserQuery(BaseModel):
    """Which users to list. `after` is the last answer's `next`."""

    model_config = ConfigDict(extra="forbid")

    email: Email | None = None
    role: Role | None = None
    state: UserState | None = None
    workspace_id: uuid.UUID | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: uuid.UUID | None = None


class UserView(BaseModel):
    """A user as they stand. Without a password they sign in by single sign-on, or ask for one."""

    id: uuid.UUID
    email: str
    role: Role
    workspace_id: uuid.UUID
    state: UserState
    has_password: bool
    created_at: datetime
    disabled_at: datetime | None

    @classmethod
    def of(cls, row: User) -> Self:
        return cls(
            id=row.id,
            email=row.email,
            role=row.role,
            workspace_id=row.workspace_id,
            state="active" if row.disabled_at is None else "disabled",
            has_password=row.password_hash is not None,
            created_at=row.created_at,
            disabled_at=row.disabled_at,
        )


class UserPage(BaseModel):
    """Users, newest first. `next` asks for the page after this one; null on the last."""

    data: list[UserView]
    next: uuid.UUID | None


class WorkspaceForm(Input):
    """A workspace's name, which no other has."""

    name: Name


class WorkspaceQuery(BaseModel):
    """Which workspaces to list. `after` is the last answer's `next`."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: uuid.UUID | None = None


class WorkspaceView(BaseModel):
    id: uuid.UUID
    name: str
    created_at: datetime

    @classmethod
    def of(cls, row: Workspace) -> Self:
        return cls(id=row.id, name=row.name, created_at=row.created_at)


class WorkspacePage(BaseModel):
    """Workspaces, newest first. `next` asks for the page after this one; null on the last."""

    data: list[WorkspaceView]
    next: uuid.UUID | None
