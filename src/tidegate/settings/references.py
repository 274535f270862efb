"""Secrets that stand elsewhere: `env:NAME` and `file:/path` in place of a value, in the settings and in the catalogue.

Beside `tidegate.settings` the only module that reads the environment. What was found goes into a `SecretStr` and never
back into the environment, so that children and `/proc` see the reference alone.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import SecretStr

REFERENCES: Final = ("env:", "file:")
# Of a file: more than any list of keys needs. It may be read for each connection, whatever was put in its place.
MOST_CHARACTERS: Final = 1024 * 1024


@dataclass(frozen=True)
class SecretFile:
    """Marks a setting that names a file in which a secret stands."""


def is_reference(value: str) -> bool:
    return value.startswith(REFERENCES)


def resolve_secret(reference: str) -> str:
    """The value behind a reference, without the line end that files and exports carry; a literal is itself.

    Raises `ValueError`, whose text names the reference, where there is nothing or it cannot be read.
    """
    if not is_reference(reference):
        return reference
    try:
        value = _found(reference).strip()
    except OSError as error:
        raise ValueError(f"{reference} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{reference} cannot be read: it is not UTF-8") from None
    if not value:
        raise ValueError(f"there is nothing at {reference}")
    return value


def reference_in(variable: str) -> str | None:
    """The reference that stands in an environment variable, None where there is none."""
    value = os.environ.get(variable, "")
    return value if is_reference(value) else None


def is_open_to_others(reference: str) -> bool:
    """Whether a `file:` reference names a file that every user of the machine may read."""
    if not reference.startswith("file:"):
        return False
    try:
        return bool(Path(reference.removeprefix("file:")).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def holds_secret(annotation: Any) -> bool:
    """Whether a setting of this type is a secret, or holds some."""
    return annotation is SecretStr or any(holds_secret(part) for part in get_args(annotation))


def names_secret_file(annotation: Any) -> bool:
    """Whether a setting of this type names a file in which a secret stands."""
    return isinstance(annotation, SecretFile) or any(names_secret_file(part) for part in get_args(annotation))


def _found(reference: str) -> str:
    kind, _, name = reference.partition(":")
    if kind == "env":
        return os.environ.get(name, "")
    path = Path(name)
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8") as file:
        content = file.read(MOST_CHARACTERS + 1)
    if len(content) > MOST_CHARACTERS:
        raise ValueError(f"{reference} holds no secret: it has more than {MOST_CHARACTERS} characters")
    return content
