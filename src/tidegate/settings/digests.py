"""Digests of the settings, by which two processes can tell whether they go by the same without telling each other."""

import hashlib
from typing import Any

import orjson
from pydantic import BaseModel, SecretStr

from tidegate.settings.loading import Settings

_WHERE_IT_LISTENS = frozenset({"host", "port", "workers", "management_port", "management_host"})


def settings_digests(settings: Settings) -> dict[str, str]:
    """One a group, secrets included, so that two processes can tell whether they go by the same: never for a log.

    Without where the server listens and what it keeps: those may be given by flags, and are the root's.
    """
    told: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name == "data_dir":
            continue
        told[name] = _plain(value, without=_WHERE_IT_LISTENS if name == "server" else frozenset())
    return {name: hashlib.sha256(orjson.dumps(value)).hexdigest()[:16] for name, value in told.items()}


def _plain(value: Any, *, without: frozenset[str] = frozenset()) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {name: _plain(getattr(value, name)) for name in sorted(fields) if name not in without}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
