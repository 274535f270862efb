"""API keys as `/api/keys` takes and shows them. A secret is in the two answers that make one, and nowhere else."""

import re
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from tidegate.accounts.api_keys.secrets import LONGEST_OVERLAP
from tidegate.accounts.schemas import AddressesOfKey, Email, Future, Input, KeyFields, ModelsOfKey, Name
from tidegate.auth.addresses import admits_all
from tidegate.auth.models import ApiKey, RetiringSecret
from tidegate.auth.principal import Scope
from tidegate.ledger.entry import utc_now
from tidegate.limits.models import LimitRow
from tidegate.limits.schemas import Id, LimitView, NeverNull
from tidegate.limits.values import Action, Meter, Overrun, Window

_LENGTH: Final = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def _in_seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    matched = _LENGTH.fullmatch(value)
    if matched is None:
        raise ValueError("must be seconds as a number, or a length of time such as 90m, 24h or 7d")
    return int(timedelta(**{_UNITS[matched[2]]: int(matched[1])}).total_seconds())


Overlap = Annotated[
    int,
    Field(ge=0, le=int(LONGEST_OVERLAP.total_seconds())),
    BeforeValidator(
        _in_seconds,
        json_schema_input_type=Annotated[int, Field(ge=0, le=int(LONGEST_OVERLAP.total_seconds()))]
        | Annotated[str, Field(pattern=f"^{_LENGTH.pattern}$")],
    ),
]


class KeyForm(KeyFields):
    """An API key to create.

    It belongs to the caller, with `service_account` to a service account made for it. `owner` is another user's
    address, `workspace_id` another workspace, where without an owner it is a service account's.
    """

    workspace_id: Id | None = None
    owner: Email | None = None
    service_account: Annotated[bool, Field(validate_default=True)] = False

    @field_validator("service_account")
    @classmethod
    def _owner_is_one(cls, is_wanted: bool, info: ValidationInfo) -> bool:
        if is_wanted and info.data.get("owner") is not None:
            raise ValueError("must be left out where there is an owner")
        return is_wanted


class ChangedKey(Input):
    """What may change of a key. Null takes a bound away: every model, no expiry, from anywhere."""

    name: Annotated[Name | None, NeverNull()] = None
    models: ModelsOfKey | None = None
    expires_at: Future | None = None
    trusts_attribution: Annotated[bool | None, NeverNull()] = None
    allowed_addresses: AddressesOfKey | None = None

    @field_validator("name", "trusts_attribution", mode="before")
    @classmethod
    def _is_given_or_left_out(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("must not be null: leave out what stays")
        return value

    def widens(self, row: ApiKey) -> bool:
        """Whether the key would admit more models or addresses, or live longer, than it does."""
        more_models = (
            "models" in self.model_fields_set
            and row.models is not None
            and (self.models is None or not set(self.models) <= set(row.models))
        )
        longer = (
            "expires_at" in self.model_fields_set
            and row.expires_at is not None
            and (self.expires_at is None or self.expires_at > row.expires_at)
        )
        return more_models or longer or self._admits_more_addresses(row)

    def _admits_more_addresses(self, row: ApiKey) -> bool:
        if "allowed_addresses" not in self.model_fields_set or row.allowed_addresses is None:
            return False
        return self.allowed_addresses is None or not admits_all(row.allowed_addresses, self.allowed_addresses)


class Rotation(Input):
    """How a key is rotated: the old secret goes on for `overlap`, seconds or a length of time such as `24h`."""

    overlap: Overlap = 0


class KeyQuery(BaseModel):
    """Which keys to list. `prefix` is with or without its `tg_`; `after` is the last answer's `next`.

    `owner` is a user's address, or a service account's name.
    """

    model_config = ConfigDict(extra="forbid")

    prefix: Annotated[str, Field(pattern=r"^(tg_)?[a-z0-9]{8}$", max_length=11)] | None = None
    workspace_id: uuid.UUID | None = None
    owner: Annotated[str, Field(min_length=1, max_length=254, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: uuid.UUID | None = None


class KeyOwner(BaseModel):
    """`name` is a user's address, or a service account's name."""

    kind: Literal["user", "service_account"]
    id: uuid.UUID
    name: str


class KeyLimit(BaseModel):
    """A limit of this key alone, as `/api/limits` has it. `label` names it in headers and messages."""

    id: uuid.UUID
    label: str
    model: str | None
    meter: Meter
    window: Window | None
    amount: int | str
    action: Action
    on_overrun: Overrun

    @classmethod
    def of(cls, row: LimitRow) -> Self:
        return cls.model_validate(LimitView.of(row), from_attributes=True)


class Retiring(BaseModel):
    """A secret that the key had before a rotation, and that works until `ends_at`."""

    prefix: str
    ends_at: datetime


class KeyView(BaseModel):
    """An API key as it stands. `last_used_at` may be a minute behind.

    `pepper_kid` names the pepper that its hash is under: the current one, once the key was used under it.
    """

    id: uuid.UUID
    prefix: str
    name: str
    workspace_id: uuid.UUID
    owner: KeyOwner
    scopes: list[Scope]
    models: list[str] | None
    allowed_addresses: list[str] | None
    limits: list[KeyLimit]
    queue_weight: int
    trusts_attribution: bool
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    pepper_kid: str | None
    retiring: list[Retiring]

    @classmethod
    def of(cls, row: ApiKey, owner: KeyOwner, limits: list[LimitRow], retiring: Sequence[RetiringSecret]) -> Self:
        given = {
            "owner": owner,
            "limits": [KeyLimit.of(limit) for limit in limits],
            "state": _state(row),
            "retiring": [Retiring(prefix=secret.prefix, ends_at=secret.ends_at) for secret in retiring],
        }
        return cls(**given, **{name: getattr(row, name) for name in cls.model_fields if name not in given})


class KeyWithSecret(KeyView):
    """A key with its secret, `key`, which is shown this once."""

    key: Annotated[str, Field(repr=False)]

    @classmethod
    def revealing(cls, view: KeyView, secret: str) -> Self:
        return cls(key=secret, **{name: getattr(view, name) for name in KeyView.model_fields})


class KeyPage(BaseModel):
    """API keys, newest first. `next` asks for the page after this one; null on the last."""

    data: list[KeyView]
    next: uuid.UUID | None


def _state(row: ApiKey) -> Literal["active", "expired", "revoked"]:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= utc_now() else "active"
