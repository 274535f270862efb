"""What commands take: option types, and models filled from options. A wrong value is a usage error (exit 2)."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar

import click
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)

_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST: Final = timedelta(days=36_500)


class Duration(click.ParamType[timedelta]):
    """A length of time such as `90m`, `12h`, `30d` or `4w`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        matched = _DURATION.fullmatch(str(value))
        length = timedelta(**{_UNITS[matched[2]]: int(matched[1])}) if matched else None
        if length is None or length > _LONGEST:
            self.fail(f"{value!r} is no length of time; write it as 90m, 12h, 30d or 4w (at most 36500d).", param, ctx)
        return length


class CommaSeparated(click.ParamType[tuple[str, ...]]):
    """Values with commas between them."""

    name = "a,b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        parts = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not parts:
            self.fail("names nothing.", param, ctx)
        return parts


def from_options(model: type[Model], options: Mapping[str, object]) -> Model:
    """`model` of the options that were given (None: was not). Raises `click.UsageError` for the first fault."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        message = fault["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"--{str(fault['loc'][0]).replace('_', '-')}: {message}") from None
