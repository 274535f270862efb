"""The effective configuration written down, so that it can be read again: variables, and the catalogue as TOML.

No secret is in it. Where a reference stands in a secret's place (`env:NAME`, `file:/path`), that is written; where the
secret itself stands, a reference `env:NAME` to a variable that is to be set: read again, what is missing is named.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from tidegate.routing.catalogue import CatalogueTable
from tidegate.settings import PREFIX, Settings
from tidegate.settings.groups import Group
from tidegate.settings.references import holds_secret, is_reference, reference_in

# The catalogue's text is written by itself, whatever it was read from.
_THE_CATALOGUE = ("config", "config_toml")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = re.compile(r"[A-Za-z0-9._:/@,+%*?&=\[\]~-]*")


def exported_settings(settings: Settings) -> dict[str, str]:
    """Each variable that has a value, its own or its default."""
    return {name: written for name, value in _variables(settings) if (written := _written(name, value))}


def exported_catalogue(table: CatalogueTable) -> str:
    """The catalogue as TOML, its defaults written out."""
    lines = []
    if table.default_model is not None:
        lines += [f"default_model = {_toml(table.default_model)}", ""]
    for name, upstream in table.upstreams.items():
        lines += [f"[upstreams.{_key(name)}]", *_members(_upstream(name, upstream)), ""]
    for model in table.models:
        lines += ["[[models]]", *_members(model.model_dump(mode="json", exclude_none=True)), ""]
    return "\n".join(lines[:-1]) + "\n"


def env_value(text: str) -> str:
    """A value as python-dotenv reads it back."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    # It would put a variable's value in there; this says a dollar sign by its default.
    return "'" + escaped.replace("${", "${:-$}{") + "'"


def _variables(settings: Settings) -> Iterator[tuple[str, Any]]:
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, Group):
            for inner, field in type(value).model_fields.items():
                variable = f"{PREFIX}{name}__{inner}".upper()
                is_set = getattr(value, inner)
                yield variable, _secret(variable) if is_set and holds_secret(field.annotation) else is_set
        elif name not in _THE_CATALOGUE:
            yield f"{PREFIX}{name}".upper(), value


def _secret(variable: str) -> str:
    return reference_in(variable) or f"env:{variable.removeprefix(PREFIX).replace('__', '_')}"


def _written(variable: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        # A default that is written as 30, and the 30.0 that is read of it, are one.
        return str(int(value))
    if isinstance(value, (SecretStr, BaseModel, Mapping)):
        raise TypeError(f"{variable} has no form in a line")
    if isinstance(value, (tuple, list)):
        return ",".join(str(one) for one in value)
    return str(value)


def _upstream(name: str, upstream: BaseModel) -> dict[str, Any]:
    said = upstream.model_dump(mode="json", exclude_none=True)
    key = getattr(upstream, "api_key", None)
    if isinstance(key, SecretStr):
        reference = key.get_secret_value()
        masked = "env:" + re.sub(r"[^A-Z0-9]", "_", f"{name}_api_key".upper())
        said["api_key"] = reference if is_reference(reference) else masked
    return said


def _members(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_toml(value)}" for name, value in table.items()]


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _toml(value: Any) -> str:
    """A value on one line. TOML's basic strings are JSON's, but for what they may hold unescaped."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_members(value)) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
