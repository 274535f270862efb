"""Every setting of Tidegate: typed, frozen, in groups, read once at start.

A setting comes from a variable `TIDEGATE_` + group + `__` + name, from the env file (`.env` in development, or the
file that `TIDEGATE_ENV_FILE` names), or from its default here. This is the only module that reads the environment.

`load_settings` either returns settings that this environment may run with, or raises `SettingsError`, which names
every faulty variable at once. Nothing is read at import.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from tidegate.setting_groups import (
    AlertsSettings,
    AuthSettings,
    BootstrapSettings,
    DatabaseSettings,
    Group,
    HttpSettings,
    LimitsSettings,
    MailSettings,
    RedisSettings,
    ServerSettings,
    SingleSignOnSettings,
)

PREFIX = "TIDEGATE_"
ENV_FILE_VARIABLE = "TIDEGATE_ENV_FILE"
# Kubernetes sets these for a Service of our name; they are nobody's typing error.
_KUBERNETES_VARIABLE = re.compile(r"TIDEGATE(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_.+)?)$")


class SettingsError(Exception):
    """The settings cannot be used. `faults` holds one line a faulty variable, each saying what to do."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
        self.in_production = os.environ.get(f"{PREFIX}ENVIRONMENT") == "production"


class Settings(BaseSettings):
    """All settings. A program gets them by `load_settings`; tests build them directly.

    >>> Settings(environment="test", data_dir=Path("/tmp/t")).server.port
    8000
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    environment: Literal["development", "test", "production"] = Field(
        "development", description="`development`, `test`, `production`"
    )
    data_dir: Path = Field(Path("var"), description="SQLite file, journal, first key")
    config: Path | None = Field(None, description="the catalogue of upstreams and models; `./tidegate.toml` if present")
    config_toml: str | None = Field(None, max_length=1_000_000, description="the catalogue's text, instead of a file")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="`debug` to `error`")
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    auth: AuthSettings = AuthSettings()
    http: HttpSettings = HttpSettings()
    server: ServerSettings = ServerSettings()
    limits: LimitsSettings = LimitsSettings()
    alerts: AlertsSettings = AlertsSettings()
    mail: MailSettings = MailSettings()
    single_sign_on: SingleSignOnSettings = SingleSignOnSettings()
    bootstrap: BootstrapSettings = BootstrapSettings()

    @property
    def in_production(self) -> bool:
        return self.environment == "production"

    @property
    def database_url(self) -> str:
        if self.database.url is not None:
            return self.database.url.get_secret_value()
        return f"sqlite+aiosqlite:///{(self.data_dir / 'tidegate.db').absolute()}"

    @property
    def on_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


def load_settings(overrides: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process, for a program's start.

    `overrides` are variables that stand above the environment (command-line flags). They and the env file become part
    of this process's environment, so that its children and `env:NAME` references see the same.

    Raises `SettingsError` with every fault: values that do not parse, names that do not exist, and what production
    refuses.
    """
    os.environ.update(overrides or {})
    _adopt_env_file()
    known = variable_names()
    faults = [_unknown(name, known) for name in sorted(os.environ) if _looks_grouped(name) and name not in known]
    try:
        settings = Settings()
    except ValidationError as error:
        # A name that does not exist is told above, with the nearest one that does.
        wrong = [_fault(fault) for fault in error.errors() if fault["type"] != "extra_forbidden"]
        raise SettingsError(sorted({*faults, *wrong})) from None
    if settings.in_production:
        faults += _production_faults(settings)
    if faults:
        raise SettingsError(faults)
    return settings


def resolve_secret(reference: str) -> str | None:
    """The value behind `env:NAME` or `file:/path` in the catalogue, None where there is none; a literal is itself."""
    if reference.startswith("env:"):
        return os.environ.get(reference.removeprefix("env:")) or None
    if reference.startswith("file:"):
        path = Path(reference.removeprefix("file:"))
        return path.read_text("utf-8").strip() if path.is_file() else None
    return reference


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """One line for each `TIDEGATE_` variable of no group that no setting reads, with the nearest name."""
    known = variable_names()
    names = os.environ if environ is None else environ
    return [
        _unknown(name, known)
        for name in sorted(names)
        if name.startswith(PREFIX)
        and not _looks_grouped(name)
        and name not in known
        and not _KUBERNETES_VARIABLE.match(name)
    ]


def variable_names() -> dict[str, str]:
    """Each variable that is read, with the description of what it sets, in the order of the reference."""
    names = {ENV_FILE_VARIABLE: "a file of further variables, read below the environment; `.env` in development"}
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Group):
            for inner, inner_field in group.model_fields.items():
                names[f"{PREFIX}{name}__{inner}".upper()] = inner_field.description or ""
        else:
            names[f"{PREFIX}{name}".upper()] = field.description or ""
    return names


def _adopt_env_file() -> None:
    named = os.environ.get(ENV_FILE_VARIABLE)
    if named and not Path(named).is_file():
        raise SettingsError([f"{ENV_FILE_VARIABLE}: there is no file {named}"])
    in_development = os.environ.get(PREFIX + "ENVIRONMENT", "development") == "development"
    path = named or (".env" if in_development else None)
    if path is not None:
        for name, value in dotenv_values(path).items():
            os.environ.setdefault(name, value or "")


def _looks_grouped(name: str) -> bool:
    return name.startswith(PREFIX) and "__" in name


def _fault(fault: ErrorDetails) -> str:
    name = PREFIX + "__".join(str(part) for part in fault["loc"][:2]).upper()
    return f"{name}: {fault['msg'].removeprefix('Value error, ')}"


def _unknown(name: str, known: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{name}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _production_faults(settings: Settings) -> list[str]:
    """What may be convenient in development and is refused in production. The one place of these checks."""
    faults = []
    if settings.database.url is None:
        faults.append("TIDEGATE_DATABASE__URL: needed in production: postgresql+asyncpg://user:password@host/name")
    if not settings.auth.jwt_keys:
        faults.append("TIDEGATE_AUTH__JWT_KEYS: needed in production: 1:$(openssl rand -hex 32)")
    if not settings.auth.api_key_peppers:
        faults.append("TIDEGATE_AUTH__API_KEY_PEPPERS: needed in production: 1:$(openssl rand -hex 32)")
    secrets = [s.get_secret_value() for _, s in (*settings.auth.jwt_keys, *settings.auth.api_key_peppers)]
    if len(set(secrets)) != len(secrets):
        faults.append("TIDEGATE_AUTH__API_KEY_PEPPERS: a secret is used twice; every key needs its own")
    faults += [
        f"TIDEGATE_HTTP__CORS_ORIGINS: {origin!r} is not one exact origin, such as https://app.example.com"
        for origin in settings.http.cors_origins
        if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?", origin)
    ]
    if any(proxy in ("*", "0.0.0.0/0", "::/0") for proxy in settings.http.trusted_proxies):
        faults.append("TIDEGATE_HTTP__TRUSTED_PROXIES: name the proxies' own addresses; everyone cannot be trusted")
    several_workers = settings.server.workers == "auto" or settings.server.workers > 1
    if several_workers and settings.redis.url is None:
        faults.append("TIDEGATE_REDIS__URL: needed for more than one worker; or set TIDEGATE_SERVER__WORKERS=1")
    if several_workers and settings.database.url is not None and settings.on_sqlite:
        faults.append("TIDEGATE_DATABASE__URL: SQLite serves one worker; use PostgreSQL or TIDEGATE_SERVER__WORKERS=1")
    return faults
