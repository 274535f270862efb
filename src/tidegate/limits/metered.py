"""An amount of one meter in one window, as it comes from outside: what every limit and every policy holds."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tidegate.limits.values import MOST, Meter, Window, exact_amount

Amount = Annotated[int, Field(ge=1, le=MOST)] | Annotated[str, Field(pattern=r"^[0-9.]+$", max_length=32)]
_WINDOWS: Final = "minute, hour, day, week, month or total"


def check_window(window: Window | None, meter: Meter | None) -> Window | None:
    """Raises `ValueError` unless there is a window exactly where the meter has one. `meter` is None where it is bad."""
    if meter == "concurrency" and window is not None:
        raise ValueError("must be left out: concurrency is counted at every moment")
    if meter not in {None, "concurrency"} and window is None:
        raise ValueError(f"must be {_WINDOWS}")
    return window


def check_amount(amount: Any, meter: Meter | None) -> Any:
    """Raises `ValueError` unless this is an amount of the meter. `meter` is None where it is bad."""
    if isinstance(amount, bool) or not isinstance(amount, int | str):
        raise ValueError("must be a whole number, or a decimal number as a string")  # noqa: TRY004 - pydantic's way
    if meter is not None:
        exact_amount(meter, amount)
    return amount


class MeteredAmount(BaseModel):
    """So many requests, tokens or slots, or so much money (USD), in a window; concurrency has none.

    >>> MeteredAmount(meter="cost", window="month", amount="10.00").exact_amount
    10000000000
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    meter: Meter
    window: Annotated[Window | None, Field(validate_default=True)] = None
    amount: Amount

    @property
    def exact_amount(self) -> int:
        """The amount as `Limit` holds it."""
        return exact_amount(self.meter, self.amount)

    @field_validator("window")
    @classmethod
    def _window_fits_the_meter(cls, window: Window | None, info: ValidationInfo) -> Window | None:
        return check_window(window, info.data.get("meter"))

    @field_validator("amount", mode="before")
    @classmethod
    def _amount_fits_the_meter(cls, amount: Any, info: ValidationInfo) -> Any:
        return check_amount(amount, info.data.get("meter"))
