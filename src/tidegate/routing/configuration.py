"""Reading the catalogue's file: from TOML to a `Catalogue`, or every fault with its place.

A fault says file, line, what is wrong and the nearest valid name, as a tired person needs it.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from tidegate.routing.catalogue import (
    BreakerSettings,
    CacheSettings,
    Catalogue,
    CatalogueTable,
    ModelTable,
    NamesDoNotMeet,
    Place,
    PriceTable,
    QueueLimits,
    Timeouts,
    Upstream,
    UpstreamTable,
    build_catalogue,
    catalogue_path,
    embedded_table,
    nearest,
)
from tidegate.settings import Settings
from tidegate.settings.hosts import host_of, is_private
from tidegate.settings.references import is_open_to_others, is_reference, resolve_secret

_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")
_TABLES: dict[str, type[BaseModel]] = {
    "queue": QueueLimits,
    "timeouts": Timeouts,
    "breaker": BreakerSettings,
    "price": PriceTable,
    "cache": CacheSettings,
}
_WORD_OR_TABLE = ("breaker", "price", "cache")


@dataclass(frozen=True, slots=True)
class CatalogueSource:
    """A catalogue as it was written: where (a path, for messages), and its text; None is embedded mode's own."""

    name: str
    text: str | None


class CatalogueError(Exception):
    """The catalogue cannot be used. `faults` holds one line a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load_catalogue(settings: Settings) -> Catalogue:
    """The catalogue that these settings name. Raises `CatalogueError`."""
    return parse_catalogue(settings, read_catalogue(settings))


def parse_catalogue(settings: Settings, written: CatalogueSource) -> Catalogue:
    """What was written, as a value; the secrets that it refers to are read now. Raises `CatalogueError`."""
    table = parse_table(written)
    if written.text is None:
        return build_catalogue(table, {})
    secrets, faults = _resolve(settings, written.name, written.text, table)
    if faults:
        raise CatalogueError(faults)
    return build_catalogue(table, secrets)


def parse_table(written: CatalogueSource) -> CatalogueTable:
    """What was written, with every default, and secrets as they were referred to. Raises `CatalogueError`."""
    source, text = written.name, written.text
    if text is None:
        return CatalogueTable.model_validate(embedded_table())
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError([f"{source}:{_syntax_line(text, error)}: this is not TOML: {error}"]) from None
    if isinstance(tables.get("models"), dict):
        line = _line(text, ("models",))
        raise CatalogueError(
            [f'{source}:{line}: models are an array: write [[models]] with name = "…", not [models.name]']
        )
    try:
        return CatalogueTable.model_validate(tables)
    except ValidationError as error:
        faults = list(_faults(source, text, error.errors(include_url=False, include_input=False)))
        raise CatalogueError(faults) from None


def read_catalogue(settings: Settings) -> CatalogueSource:
    """What these settings name, unread. Raises `CatalogueError` where it cannot be read."""
    if settings.config_toml is not None:
        return CatalogueSource("TIDEGATE_CONFIG_TOML", settings.config_toml)
    path = catalogue_path(settings.config)
    if path is None:
        return CatalogueSource("embedded", None)
    try:
        return CatalogueSource(str(path), path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CatalogueError([f"TIDEGATE_CONFIG: {path} cannot be read: {reason}"]) from None


def faults_of_replacing(before: Catalogue, after: Catalogue, written: CatalogueSource) -> list[str]:
    """Why `after`, as it was `written`, cannot take the place of `before` in a server that runs; none where it can.

    The local model is a child of the server's root: what it is started with is what a reload cannot change.
    """
    ours, theirs = _local(before), _local(after)
    text = written.text or ""
    if ours is None and theirs is not None:
        told = "a reload cannot start the local model: restart the server"
        return [_told(written.name, text, ("upstreams", theirs.name, "provider"), told)]
    if ours is not None and theirs is None:
        told = f'the upstream {ours.name!r} of provider "local" is gone, and a reload cannot stop the local model: '
        return [_told(written.name, text, ("upstreams",), told + "restart the server, or keep it")]
    if ours is not None and theirs is not None and ours.max_concurrency != theirs.max_concurrency:
        told = f"a reload cannot change the {ours.max_concurrency} slots of the local model: restart the server"
        return [_told(written.name, text, ("upstreams", theirs.name, "max_concurrency"), told)]
    return []


def _local(catalogue: Catalogue) -> Upstream | None:
    return next((upstream for upstream in catalogue.upstreams.values() if upstream.provider == "local"), None)


def open_key_files(settings: Settings) -> list[str]:
    """One line for each file of an upstream's key that every user of this machine may read.

    None for a catalogue that cannot be read: that is told elsewhere.
    """
    try:
        text = read_catalogue(settings).text
        if text is None or "file:" not in text:
            return []
        table = CatalogueTable.model_validate(tomllib.loads(text))
    except (CatalogueError, ValueError):
        return []
    keys = {name: upstream.api_key for name, upstream in table.upstreams.items()}
    return [
        f"upstreams.{name}.api_key: every user of this machine may read {key.get_secret_value()}; chmod 600 it"
        for name, key in keys.items()
        if key is not None and is_open_to_others(key.get_secret_value())
    ]


def _resolve(
    settings: Settings, source: str, text: str, table: CatalogueTable
) -> tuple[dict[str, SecretStr | None], list[str]]:
    secrets: dict[str, SecretStr | None] = {}
    faults: list[str] = []
    for name, upstream in table.upstreams.items():
        if upstream.api_key is None:
            continue
        reference = upstream.api_key.get_secret_value()
        place = f"{source}:{_line(text, ('upstreams', name, 'api_key'))}: upstreams.{name}.api_key"
        if settings.in_production:
            faults += _refused_in_production(source, text, name, upstream)
            if not is_reference(reference):
                continue
        try:
            value = resolve_secret(reference).strip()
        except ValueError as error:
            faults.append(f"{place}: {error}")
            continue
        if not value:
            faults.append(f"{place}: there is nothing at {reference}")
            continue
        if not _HEADER_VALUE.fullmatch(value):
            faults.append(f"{place}: the key holds a blank, a line end or another character that no header can carry")
            continue
        secrets[name] = SecretStr(value)
    return secrets, faults


def _refused_in_production(source: str, text: str, name: str, upstream: UpstreamTable) -> Iterator[str]:
    """Of an upstream with a key: one that the file itself tells, and one that goes to a stranger in the clear."""
    if upstream.api_key is not None and not is_reference(upstream.api_key.get_secret_value()):
        told = "a literal key is refused in production; write env:NAME or file:/path"
        yield _told(source, text, ("upstreams", name, "api_key"), told)
    url = upstream.base_url or ""
    if url.startswith("http://") and not is_private(host_of(url)):
        told = "its key would travel in the clear beyond private networks; use https://"
        yield _told(source, text, ("upstreams", name, "base_url"), told)


def _syntax_line(text: str, error: tomllib.TOMLDecodeError) -> int:
    said = re.search(r"at line (\d+)", str(error))
    return int(said[1]) if said else len(text.split("\n"))


def _faults(source: str, text: str, found: list[ErrorDetails]) -> Iterator[str]:
    for fault in found:
        location = fault["loc"]
        below = [other for other in found if other["loc"] != location and other["loc"][: len(location)] == location]
        if fault["type"] == "too_short" and below:
            # The list is only short because its members are at fault.
            continue
        names_do_not_meet = fault.get("ctx", {}).get("error")
        if isinstance(names_do_not_meet, NamesDoNotMeet):
            for place, message in names_do_not_meet.faults:
                yield _told(source, text, place, message)
            continue
        place = _place(location)
        yield _told(source, text, place, _message(fault, place))


def _told(source: str, text: str, place: Place, message: str) -> str:
    named = ".".join(str(part) for part in place)
    return f"{source}:{_line(text, place)}: {named}: {message}" if named else f"{source}:1: {message}"


def _place(location: Place) -> Place:
    """Pydantic's location without what only it knows: which form of a union it tried, and that a key is at fault."""
    return tuple(
        part
        for position, part in enumerate(location)
        if part != "[key]" and not (part in ("table", "word") and location[position - 1] in _WORD_OR_TABLE)
    )


def _message(fault: ErrorDetails, place: Place) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return f"there is no such name{nearest(str(place[-1]), _names_at(place))}"
        case "missing":
            return "is missing"
        case "model_type" | "dict_type":
            return "must be a table"
        case "tuple_type":
            return "must be an array"
        case "string_pattern_mismatch" if fault["loc"][-1] == "[key]":
            return "the name of an upstream has 1 to 64 of A-Za-z0-9._-"
    return fault["msg"].removeprefix("Value error, ")


def _names_at(place: Place) -> list[str]:
    model: type[BaseModel] = CatalogueTable
    if len(place) > 3 and place[-2] in _TABLES:
        model = _TABLES[str(place[-2])]
    elif place[0] == "upstreams" and len(place) == 3:
        model = UpstreamTable
    elif place[0] == "models" and len(place) == 3:
        model = ModelTable
    return list(model.model_fields)


def _line(text: str, place: Place) -> int:
    """The line of the deepest part of a place that the text shows; 1 where it shows none.

    A part is a key of the table that its parent begins, or has a header of its own further down.
    """
    lines = text.split("\n")
    at = 0
    for position, part in enumerate(place):
        if isinstance(part, int):
            continue
        name = rf'"?{re.escape(part)}"?'
        key = re.compile(rf"(^\s*|[{{,]\s*){name}\s*=")
        header = re.compile(rf"^\s*\[+\s*([\w\".-]+\.)*{name}\s*[\].]")
        following = place[position + 1] if position + 1 < len(place) else None
        nth = following if isinstance(following, int) and position == 0 else 0
        if isinstance(following, int) and position == 0:
            header = re.compile(rf"^\s*\[\[\s*{name}\s*\]\]")
        headers = [number for number in range(at, len(lines)) if header.search(lines[number])]
        keys = [number for number in range(at, _table_end(lines, at, position)) if key.search(lines[number])]
        # An upstream's name is a header's before it is a key's; all deeper parts are keys before they are headers.
        found = headers or keys if position == 1 else keys or headers
        if found:
            at = found[min(nth, len(found) - 1)]
    return at + 1


def _table_end(lines: list[str], at: int, position: int) -> int:
    """The line of the next header; at the top of the file also the first one."""
    start = at + 1 if position else at
    return next((number for number in range(start, len(lines)) if lines[number].lstrip().startswith("[")), len(lines))
