"""Limits and key policies as routes take and show them: money as decimal strings of USD, counts as numbers."""

import re
import uuid
from datetime import datetime
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tidegate.limits.metered import Amount, MeteredAmount, check_amount, check_window
from tidegate.limits.models import KeyPolicy, LimitRow
from tidegate.limits.values import Action, Limit, LimitScope, Meter, Overrun, Window, exact_amount, written_amount
from tidegate.limits.windows import zone_exists

# No control characters: PostgreSQL's text holds no NUL, and terminals show subjects.
_PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f]+$"
# A tag's name, `=` and its value, the longest subject there is.
_LONGEST_SUBJECT: Final = 64 + 1 + 256
_TAG: Final = re.compile(r"([^=,]{1,64})=([^,]{0,256})")
_CALENDAR: Final = ("hour", "day", "week", "month")

Subject = Annotated[str, Field(min_length=1, max_length=_LONGEST_SUBJECT, pattern=_PRINTABLE)]
ModelPattern = Annotated[str, Field(min_length=1, max_length=256, pattern=_PRINTABLE)]
Zone = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")]
# Bodies are strict, and JSON has no UUIDs.
Id = Annotated[uuid.UUID, Field(strict=False)]


class NeverNull:
    """Marks a field that may be left out and, by a validator of its own, not be null: so says the JSON schema too."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        told = handler(schema)
        forms = [form for form in told.pop("anyOf", []) if form != {"type": "null"}]
        return {**told, **forms[0]} if len(forms) == 1 else {**told, "anyOf": forms}


class NewLimit(MeteredAmount):
    """A limit to create. Without a workspace it is the caller's, or the one of the key or user that it names.

    A subject is a key's or a user's id, an end user, `name=value` of a tag, or an upstream's name; without one, every
    key (user, …) of the workspace is limited, each counted apart.
    """

    workspace_id: Id | None = None
    scope: LimitScope
    subject: Subject | None = None
    model: ModelPattern | None = None
    zone: Zone | None = None
    action: Action = "refuse"
    on_overrun: Overrun = "finish"

    @field_validator("subject")
    @classmethod
    def _subject_fits_the_scope(cls, subject: str | None, info: ValidationInfo) -> str | None:
        scope: LimitScope | None = info.data.get("scope")
        return subject if subject is None or scope is None else _subject_of(scope, subject)

    @field_validator("on_overrun")
    @classmethod
    def _upstreams_cut_nothing(cls, on_overrun: Overrun, info: ValidationInfo) -> Overrun:
        if on_overrun == "cut" and info.data.get("scope") == "upstream":
            raise ValueError("must be finish: a stream is cut by its caller's limits, not by its upstream's")
        return on_overrun

    @field_validator("zone")
    @classmethod
    def _zone_has_a_calendar(cls, zone: str | None, info: ValidationInfo) -> str | None:
        if zone is None:
            return None
        if "window" in info.data and info.data["window"] not in _CALENDAR:
            raise ValueError(f"must be left out: only the windows {', '.join(_CALENDAR)} follow a calendar")
        if not zone_exists(zone):
            raise ValueError("must be a time zone's name, such as Europe/Berlin")
        return zone


class ChangedLimit(BaseModel):
    """What may change of a limit. What it counts stays: a limit that counts something else is another limit."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    amount: Annotated[Amount | None, NeverNull()] = None
    action: Annotated[Action | None, NeverNull()] = None
    on_overrun: Annotated[Overrun | None, NeverNull()] = None

    @field_validator("*", mode="before")
    @classmethod
    def _is_given_or_left_out(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            raise ValueError("must not be null: leave out what stays")
        return check_amount(value, None) if info.field_name == "amount" else value


class LimitQuery(BaseModel):
    """Which limits to list. `key_prefix` is a key's, with or without its `tg_`; `after` is the last answer's `next`."""

    model_config = ConfigDict(extra="forbid")

    scope: LimitScope | None = None
    subject: Subject | None = None
    key_prefix: Annotated[str, Field(pattern=r"^(tg_)?[a-z0-9]{8}$", max_length=11)] | None = None
    workspace_id: uuid.UUID | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: uuid.UUID | None = None


class LimitView(BaseModel):
    """A limit as it stands. `label` names it in headers and messages."""

    id: uuid.UUID
    workspace_id: uuid.UUID
    scope: LimitScope
    subject: str | None
    model: str | None
    meter: Meter
    window: Window | None
    zone: str | None
    amount: int | str
    action: Action
    on_overrun: Overrun
    label: str
    created_at: datetime

    @classmethod
    def of(cls, row: LimitRow) -> Self:
        fields = {name: getattr(row, name) for name in cls.model_fields if name not in {"amount", "label"}}
        label = limit_of(row).label
        return cls(**fields, label=label, amount=written_amount(row.meter, row.amount))


class LimitPage(BaseModel):
    """Limits, newest first. `next` asks for the page after this one; null on the last."""

    data: list[LimitView]
    next: uuid.UUID | None


class KeyPolicyForm(BaseModel):
    """What a key that a member makes gets of one meter and window, and the most that it may ask for."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    meter: Meter
    window: Annotated[Window | None, Field(validate_default=True)] = None
    default_amount: Amount | None = None
    most_amount: Annotated[Amount | None, Field(validate_default=True)] = None

    @field_validator("window")
    @classmethod
    def _window_fits_the_meter(cls, window: Window | None, info: ValidationInfo) -> Window | None:
        return check_window(window, info.data.get("meter"))

    @field_validator("default_amount", "most_amount", mode="before")
    @classmethod
    def _amount_fits_the_meter(cls, amount: Any, info: ValidationInfo) -> Any:
        return None if amount is None else check_amount(amount, info.data.get("meter"))

    @field_validator("most_amount")
    @classmethod
    def _default_is_within_the_most(cls, most: int | str | None, info: ValidationInfo) -> int | str | None:
        if not {"meter", "default_amount"} <= info.data.keys():
            return most
        meter, default = info.data["meter"], info.data["default_amount"]
        if default is None and most is None:
            raise ValueError("must be given where there is no default_amount")
        if default is not None and most is not None and exact_amount(meter, default) > exact_amount(meter, most):
            raise ValueError("must not be less than default_amount")
        return most

    @classmethod
    def of(cls, policy: KeyPolicy) -> Self:
        default, most = (
            None if amount is None else written_amount(policy.meter, amount)
            for amount in (policy.default_amount, policy.most_amount)
        )
        return cls(meter=policy.meter, window=policy.window, default_amount=default, most_amount=most)


class KeyPolicies(BaseModel):
    """All that a workspace says of keys that its members make: at most one policy for each meter and window."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    data: Annotated[list[KeyPolicyForm], Field(max_length=32)]

    @model_validator(mode="after")
    def _each_is_one(self) -> Self:
        meters = [(policy.meter, policy.window) for policy in self.data]
        twice = next((meter for meter in meters if meters.count(meter) > 1), None)
        if twice is not None:
            raise ValueError(f"data names {' a '.join(part for part in twice if part)} more than once")
        return self


def limit_of(row: LimitRow) -> Limit:
    """The value of a row."""
    fields = {name: getattr(row, name) for name in Limit.__struct_fields__}
    return Limit(**fields | {"id": uuid.UUID(int=row.id.int), "workspace_id": uuid.UUID(int=row.workspace_id.int)})


def _subject_of(scope: LimitScope, subject: str) -> str:
    """The one form of a subject. Raises `ValueError`."""
    match scope:
        case "deployment" | "workspace":
            raise ValueError(f"must be left out: a limit of scope {scope} has one subject, the {scope} itself")
        case "key" | "user":
            try:
                return str(uuid.UUID(subject))
            except ValueError:
                raise ValueError(f"must be the id of a {scope}") from None
        case "tag":
            matched = _TAG.fullmatch(subject)
            if matched is None or not matched[1].strip():
                raise ValueError("must be name=value of a tag")
            return f"{matched[1].strip()}={matched[2].strip()}"
        case "end_user" | "upstream":
            return subject
