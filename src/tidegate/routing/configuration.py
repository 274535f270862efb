"""Reading the catalogue's file: from TOML to a `Catalogue`, or every fault with its place.

A fault says file, line, what is wrong and the nearest valid name, as a tired person needs it.
"""

import difflib
import re
import tomllib
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from tidegate.routing.catalogue import (
    BreakerSettings,
    Catalogue,
    CatalogueTable,
    ModelTable,
    PriceTable,
    QueueLimits,
    Timeouts,
    UpstreamTable,
    build_catalogue,
    catalogue_path,
    embedded_table,
)
from tidegate.settings import Settings, resolve_secret

_TABLES: dict[str, type[BaseModel]] = {
    "queue": QueueLimits,
    "timeouts": Timeouts,
    "breaker": BreakerSettings,
    "price": PriceTable,
}


class CatalogueError(Exception):
    """The catalogue cannot be used. `faults` holds one line a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load_catalogue(settings: Settings) -> Catalogue:
    """The catalogue that these settings name. Raises `CatalogueError`."""
    source, text = _read(settings)
    if text is None:
        return build_catalogue(CatalogueTable.model_validate(embedded_table()), {})
    try:
        written = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError([f"{source}: this is not TOML: {error}"]) from None
    if isinstance(written.get("models"), dict):
        line = _line(text, ("models",))
        raise CatalogueError(
            [f'{source}:{line}: models are an array: write [[models]] with name = "…", not [models.name]']
        )
    try:
        table = CatalogueTable.model_validate(written)
    except ValidationError as error:
        faults = [_fault(source, text, dict(fault)) for fault in error.errors(include_url=False, include_input=False)]
        raise CatalogueError(faults) from None
    secrets, faults = _resolve(settings, source, text, table)
    if faults:
        raise CatalogueError(faults)
    return build_catalogue(table, secrets)


def _read(settings: Settings) -> tuple[str, str | None]:
    if settings.config_toml is not None:
        return "TIDEGATE_CONFIG_TOML", settings.config_toml
    path = catalogue_path(settings.config)
    if path is None:
        return "embedded", None
    try:
        return str(path), path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CatalogueError([f"TIDEGATE_CONFIG: {path} cannot be read: {reason}"]) from None


def _resolve(
    settings: Settings, source: str, text: str, table: CatalogueTable
) -> tuple[dict[str, SecretStr | None], list[str]]:
    secrets: dict[str, SecretStr | None] = {}
    faults = []
    for name, upstream in table.upstreams.items():
        if upstream.api_key is None:
            continue
        reference = upstream.api_key.get_secret_value()
        place = f"{source}:{_line(text, ('upstreams', name, 'api_key'))}: upstreams.{name}.api_key"
        if settings.in_production and not reference.startswith(("env:", "file:")):
            faults.append(f"{place}: a literal key is refused in production; write env:NAME or file:/path")
            continue
        value = resolve_secret(reference)
        if value is None:
            faults.append(f"{place}: there is nothing at {reference}")
            continue
        secrets[name] = SecretStr(value)
    return secrets, faults


def _fault(source: str, text: str, fault: dict[str, Any]) -> str:
    location = tuple(fault["loc"])
    where = ".".join(str(part) for part in location)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "there is no such name" + _nearest(location)
    elif fault["type"] == "missing":
        message = "is missing"
    place = f"{source}:{_line(text, location)}"
    return f"{place}: {where}: {message}" if where else f"{place}: {message}"


def _nearest(location: tuple[str | int, ...]) -> str:
    names = [str(part) for part in location]
    model: type[BaseModel] = CatalogueTable
    if len(names) > 2 and names[-2] in _TABLES:
        model = _TABLES[names[-2]]
    elif names[0] == "upstreams" and len(names) == 3:
        model = UpstreamTable
    elif names[0] == "models" and len(names) == 3:
        model = ModelTable
    near = difflib.get_close_matches(names[-1], model.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(model.model_fields)}"


def _line(text: str, location: tuple[str | int, ...]) -> int:
    """The line of the deepest part of a place that the text shows; 1 where it shows none."""
    lines = text.splitlines()
    at = 0
    for position, part in enumerate(location):
        if isinstance(part, int):
            continue
        following = location[position + 1] if position + 1 < len(location) else None
        nth = following if isinstance(following, int) else 0
        name = re.escape(part)
        pattern = re.compile(rf'^\s*\[+\s*([\w".-]+\.)*"?{name}"?\s*[\].]|(^\s*|[{{,]\s*)"?{name}"?\s*=')
        found = [number for number in range(at, len(lines)) if pattern.search(lines[number])]
        if len(found) > nth:
            at = found[nth]
    return at + 1
