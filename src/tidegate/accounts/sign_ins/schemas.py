"""What is said of sign-ins and their tokens over HTTP."""

import uuid
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, SecretStr

from tidegate.accounts.models import SignIn, SignInMethod
from tidegate.accounts.schemas import Input
from tidegate.accounts.sign_ins.service import IssuedTokens


class RefreshTokenForm(Input):
    """A refresh token, `tgr_…`. One that has not a refresh token's form is answered as one that nobody was given."""

    refresh_token: Annotated[SecretStr, Field(min_length=1, max_length=512)]


class Tokens(BaseModel):
    """What a log-in or a refresh gives. `expires_in` is the access token's lifetime in seconds."""

    access_token: str
    refresh_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the type of a token, not one
    expires_in: int

    @classmethod
    def of(cls, issued: IssuedTokens) -> Self:
        return cls(access_token=issued.access_token, refresh_token=issued.refresh_token, expires_in=issued.expires_in)


class PageSession(BaseModel):
    """What the page is told of its session: its tokens are in cookies that no script reads.

    `expires_in` is in seconds: the page asks for a refresh before that, until `refresh_expires_in`.
    """

    expires_in: int
    refresh_expires_in: int

    @classmethod
    def of(cls, issued: IssuedTokens) -> Self:
        return cls(expires_in=issued.expires_in, refresh_expires_in=issued.refresh_expires_in)


class SignInView(BaseModel):
    """A sign-in of the caller's. `client_address` and `user_agent` are of its log-in; `is_current`: it is this one."""

    id: uuid.UUID
    method: SignInMethod
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    client_address: str | None
    user_agent: str | None
    is_current: bool

    @classmethod
    def of(cls, row: SignIn, current: uuid.UUID | None) -> Self:
        return cls(
            id=row.id,
            method=row.method,
            created_at=row.created_at,
            expires_at=row.expires_at,
            last_used_at=row.last_used_at,
            client_address=row.client_address,
            user_agent=row.user_agent,
            is_current=row.id == current,
        )


class SignInList(BaseModel):
    data: list[SignInView]
