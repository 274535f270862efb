"""API keys as `/api/keys` takes and shows them. A secret is in the two answers that make one, and nowhere else."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tidegate.accounts.schemas import Email, Future, Input, KeyFields, ModelsOfKey, Name
from tidegate.auth.models import ApiKey
from tidegate.auth.principal import Scope
from tidegate.ledger.entry import utc_now
from tidegate.limits.models import LimitRow
from tidegate.limits.schemas import Id, LimitView
from tidegate.limits.values import Action, Meter, Overrun, Window


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
    """What may change of a key. Null takes a bound away: every model, no expiry."""

    name: Name | None = None
    models: ModelsOfKey | None = None
    expires_at: Future | None = None
    trusts_attribution: bool | None = None

    @field_validator("name", "trusts_attribution", mode="before")
    @classmethod
    def _is_given_or_left_out(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("must not be null: leave out what stays")
        return value

    def widens(self, row: ApiKey) -> bool:
        """Whether the key would admit more models, or live longer, than it does."""
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
        return more_models or longer


class KeyQuery(BaseModel):
    """Which keys to list. `prefix` is with or without its `tg_`; `after` is the last answer's `next`."""

    model_config = ConfigDict(extra="forbid")

    prefix: Annotated[str, Field(pattern=r"^(tg_)?[a-z0-9]{8}$", max_length=11)] | None = None
    workspace_id: uuid.UUID | None = None
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


class KeyView(BaseModel):
    """An API key as it stands. `last_used_at` may be a minute behind."""

    id: uuid.UUID
    prefix: str
    name: str
    workspace_id: uuid.UUID
    owner: KeyOwner
    scopes: list[Scope]
    models: list[str] | None
    limits: list[KeyLimit]
    queue_weight: int
    trusts_attribution: bool
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, row: ApiKey, owner: KeyOwner, limits: list[LimitRow]) -> Self:
        given = {"owner": owner, "limits": [KeyLimit.of(limit) for limit in limits], "state": _state(row)}
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
