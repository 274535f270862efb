"""What may be said of users and API keys from outside: every field typed, bounded and strict."""

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, EmailStr, Field, SecretStr

from tidegate.auth.addresses import canonical_range
from tidegate.auth.passwords import MAXIMUM_CHARACTERS, MINIMUM_CHARACTERS
from tidegate.auth.principal import Role, Scope
from tidegate.limits.metered import MeteredAmount

_LONGEST: Final = timedelta(days=36_500)
# Pydantic would read numbers too, as seconds or milliseconds by their size.
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)")


def _is_a_moment(value: Any) -> Any:
    if isinstance(value, datetime) or (isinstance(value, str) and _MOMENT.fullmatch(value)):
        return value
    raise ValueError("must be a moment with its offset from UTC, such as 2030-01-31T12:00:00Z")


def _is_in_the_future(moment: datetime) -> datetime:
    now = datetime.now(UTC)
    if moment <= now:
        raise ValueError("must be in the future")
    # The last hours of the year 9999 have no UTC that Python can hold.
    if moment > now + _LONGEST:
        raise ValueError(f"must be at most {_LONGEST.days} days ahead")
    return moment.astimezone(UTC)


# RFC 5321, 4.5.3.1.3: a path is at most 256 octets, its two brackets included.
Email = Annotated[EmailStr, Field(max_length=254)]
# No control characters: names are printed on terminals.
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
CurrentPassword = Annotated[SecretStr, Field(min_length=1, max_length=MAXIMUM_CHARACTERS)]
# Longer than any of ours, however it is grouped.
Code = Annotated[SecretStr, Field(min_length=1, max_length=64)]
NewPassword = Annotated[SecretStr, Field(min_length=MINIMUM_CHARACTERS, max_length=MAXIMUM_CHARACTERS)]
ModelPattern = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
# JSON has no moments and no tuples: what it has instead is read, though the rest is strict.
Future = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_is_a_moment), AfterValidator(_is_in_the_future)]
ScopesOfKey = Annotated[tuple[Scope, ...], Field(min_length=1, max_length=8, strict=False)]
AddressRange = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(canonical_range)]
AddressesOfKey = Annotated[tuple[AddressRange, ...], Field(min_length=1, max_length=100, strict=False)]
ModelsOfKey = Annotated[tuple[ModelPattern, ...], Field(min_length=1, max_length=100, strict=False)]


class Input(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class Login(Input):
    """`code` is of the second factor, where the account has one: 6 digits, or a recovery code."""

    email: Email
    password: CurrentPassword
    code: Code | None = None


class NewUser(Input):
    """A user to create. Without a password none opens the account."""

    email: Email
    role: Role = "member"
    workspace: Name = "default"
    password: NewPassword | None = None


class KeyFields(Input):
    """What every API key is created with, whoever creates it.

    `limits` are rows of its own. `queue_weight` is its share of an upstream's queue beside other keys. With
    `trusts_attribution` the end user and the tags that its requests name count for limits of those.
    `allowed_addresses` are the addresses and CIDRs that it may be used from; null is from anywhere.
    """

    name: Name
    scopes: ScopesOfKey = ("inference",)
    models: ModelsOfKey | None = None
    expires_at: Future | None = None
    limits: Annotated[tuple[MeteredAmount, ...], Field(max_length=32, strict=False)] = ()
    queue_weight: Annotated[int, Field(ge=1, le=100)] = 1
    trusts_attribution: bool = False
    allowed_addresses: AddressesOfKey | None = None


class NewKey(KeyFields):
    """An API key to create: of the user `owner`, else of a service account made for it in `workspace`."""

    owner: Email | None = None
    workspace: Name | None = None


class KeyInUse(BaseModel):
    """The API key that a caller came with."""

    id: uuid.UUID
    name: str
    prefix: str


class SecondFactorState(BaseModel):
    """Whether a user has a second factor, how many recovery codes are left, and whether they may do nothing before they
    set one up.
    """

    is_on: bool
    recovery_codes_left: int
    must_be_set_up: bool


class Me(BaseModel):
    """The caller: a user, a key of a user, or a key of a service account (no `id`, `email` and `role` then).

    `password_ends_at` is of a password that the user did not choose: by then they need one of their own.
    `second_factor` is a signed-in user's.
    """

    id: uuid.UUID | None
    email: str | None
    role: Role | None
    workspace_id: uuid.UUID
    workspace: str
    scopes: list[Scope]
    key: KeyInUse | None
    expires_at: datetime | None
    password_ends_at: datetime | None
    second_factor: SecondFactorState | None
