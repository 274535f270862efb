"""The pages that are written from the settings: `.env.example` and the settings reference. A test holds them true."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tidegate.settings import PREFIX, Settings
from tidegate.settings.groups import Group
from tidegate.settings.references import holds_secret

ENV_EXAMPLE = Path(".env.example")
SETTINGS_PAGE = Path("docs/reference/settings.md")


def env_example() -> str:
    """Every variable, commented out at its default, under its group."""
    lines = [
        "# Every setting of Tidegate at its default. In development a file .env with these lines is read;",
        "# in production set the variables, or name a file by TIDEGATE_ENV_FILE. Written by `make docs`.",
    ]
    group = None
    for name, field in _fields():
        if _group(name) != group:
            group = _group(name)
            lines.append("")
        lines.append(f"# {field.description}")
        lines.append(f"#{name}={_default(field)}")
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """The settings reference as Markdown."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read once at start; a value that does not parse stops the start with its name. In",
        "development a file `.env` is read too, below the environment; `TIDEGATE_ENV_FILE` names another. The",
        "catalogue of upstreams and models is a file of its own: [configuration](../guide/configuration.md).",
        "",
        "In the variable of a secret, marked so below, `env:NAME` or `file:/path` may stand: the whole value is read",
        "there, once, at start. What production refuses: [running it](../guide/running.md#what-production-refuses).",
        "",
        "This page is written from the settings by `make docs`.",
        "",
        "| variable | default | |",
        "|---|---|---|",
    ]
    for name, field in _fields():
        default = _default(field)
        secret = " *secret*" if holds_secret(field.annotation) else ""
        lines.append(f"| `{name}` | {f'`{default}`' if default else 'none'} | {field.description}{secret} |")
    return "\n".join(lines) + "\n"


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Group):
            for inner, inner_field in group.model_fields.items():
                yield f"{PREFIX}{name}__{inner}".upper(), inner_field
        else:
            yield f"{PREFIX}{name}".upper(), field


def _group(name: str) -> str:
    return name.partition("__")[0] if "__" in name else ""


def _default(field: FieldInfo) -> str:
    default = field.get_default()
    if default is None or default is PydanticUndefined or default == () or isinstance(default, SecretStr):
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)
