"""What may be said of users and API keys from outside: every field typed, bounded and strict."""

import uuid
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, EmailStr, Field, SecretStr

from tidegate.auth.passwords import MAXIMUM_CHARACTERS, MINIMUM_CHARACTERS
from tidegate.auth.principal import Role, Scope


def _is_in_the_future(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("must be in the future")
    return moment


# RFC 5321, 4.5.3.1.3: a path is at most 256 octets, its two brackets included.
Email = Annotated[EmailStr, Field(max_length=254)]
# No control characters: names are printed on terminals.
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
NewPassword = Annotated[SecretStr, Field(min_length=MINIMUM_CHARACTERS, max_length=MAXIMUM_CHARACTERS)]
ModelPattern = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Future = Annotated[AwareDatetime, AfterValidator(_is_in_the_future)]


class Input(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class Login(Input):
    email: Email
    password: Annotated[SecretStr, Field(min_length=1, max_length=MAXIMUM_CHARACTERS)]


class NewUser(Input):
    """A user to create. Without a password none opens the account."""

    email: Email
    role: Role = "member"
    workspace: Name = "default"
    password: NewPassword | None = None


class NewKey(Input):
    """An API key to create: of the user `owner`, else of a service account made for it in `workspace`."""

    name: Name
    owner: Email | None = None
    workspace: Name | None = None
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("inference",)
    models: Annotated[tuple[ModelPattern, ...], Field(min_length=1, max_length=100)] | None = None
    expires_at: Future | None = None


class Token(BaseModel):
    """`expires_in` is in seconds."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the type of a token, not one
    expires_in: int


class KeyInUse(BaseModel):
    """The API key that a caller came with."""

    id: uuid.UUID
    name: str
    prefix: str


class Me(BaseModel):
    """The caller: a user, a key of a user, or a key of a service account (no `id`, `email` and `role` then)."""

    id: uuid.UUID | None
    email: str | None
    role: Role | None
    workspace_id: uuid.UUID
    workspace: str
    scopes: list[Scope]
    key: KeyInUse | None
    expires_at: datetime | None
