"""Reading the settings of a process, from its environment and the env file.

A setting comes from a variable `TIDEGATE_` + group + `__` + name, from the env file (`.env` in development, or the
file that `TIDEGATE_ENV_FILE` names), or from its default here. A secret may stand elsewhere: `env:NAME` or
`file:/path` in its place. This module and `settings.references` alone read the environment.

`load_settings` either returns settings that this environment may run with, or raises `SettingsError`, which names
every faulty variable at once. Nothing is read at import.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from tidegate.settings.groups import (
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
from tidegate.settings.logs import LogsSettings
from tidegate.settings.references import holds_secret, is_open_to_others, names_secret_file
from tidegate.settings.rules import faults_everywhere, production_advice, production_faults
from tidegate.settings.tracing import TracingSettings

PREFIX = "TIDEGATE_"
ENV_FILE_VARIABLE = "TIDEGATE_ENV_FILE"
# Kubernetes sets these for a Service of our name; they are nobody's typing error.
_KUBERNETES_VARIABLE = re.compile(r"TIDEGATE(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_.+)?)$")


class SettingsError(Exception):
    """The settings cannot be used. `faults` holds one line a faulty variable, each saying what to do.

    `settings` are what could be read, the faulty variables left out: so that more may be judged at once. None where
    there is no telling.
    """

    def __init__(self, faults: list[str], settings: "Settings | None" = None) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
        self.settings = settings
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
    logs: LogsSettings = LogsSettings()
    tracing: TracingSettings = TracingSettings()
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


def given_environment(overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with `overrides`, as a child needs it that is to read the env file anew.

    It has to be taken before `load_settings`, which adds what the env file says.
    """
    return {**os.environ, **(overrides or {})}


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
        rest = _rest(error)
        more = [] if rest is None else faults_everywhere(rest)
        if rest is not None and rest.in_production:
            more += production_faults(rest)
        further = _of_others(more, wrong)
        raise SettingsError(sorted({*faults, *wrong, *further}), rest) from None
    faults += faults_everywhere(settings)
    if settings.in_production:
        faults += production_faults(settings)
    if faults:
        raise SettingsError(faults, settings)
    return settings


def wants_colours() -> bool:
    """Whether a terminal is shown colours: `NO_COLOR` is unset or empty (no-color.org)."""
    return not os.environ.get("NO_COLOR")


def setting_advice(settings: Settings, environ: Mapping[str, str] | None = None) -> list[str]:
    """One line for each thing that is worth a warning at start: files of secrets that others may read, and so on."""
    variables = os.environ if environ is None else environ
    given = [(name, variables.get(name, "")) for name in _variables_where(holds_secret)]
    given += [(name, f"file:{variables[name]}") for name in _variables_where(names_secret_file) if variables.get(name)]
    told = [
        f"{name}: every user of this machine may read {reference}; chmod 600 it"
        for name, reference in given
        if is_open_to_others(reference)
    ]
    return told + (production_advice(settings) if settings.in_production else [])


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


def _variables_where(is_so: Callable[[Any], bool]) -> list[str]:
    """Those of groups whose type is of this kind."""
    return [
        f"{PREFIX}{name}__{inner}".upper()
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
        for inner, inner_field in field.annotation.model_fields.items()
        if is_so(inner_field.annotation)
    ]


class _Rest(Settings):
    """Settings of what is given to them alone."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def _rest(error: ValidationError) -> Settings | None:
    """The settings of every variable that is not at fault, None where that is no whole either."""
    given = EnvSettingsSource(Settings)()
    for fault in error.errors():
        group, *inner = fault["loc"]
        within = given.get(str(group))
        if inner and isinstance(within, dict):
            within.pop(str(inner[0]), None)
        else:
            given.pop(str(group), None)
    try:
        return _Rest(**given)
    except ValidationError:
        return None


def _of_others(faults: list[str], known: list[str]) -> list[str]:
    """The faults of variables that have none yet: what is left out because it is faulty is not missing."""
    variables = {fault.partition(":")[0] for fault in known}
    return [
        fault for fault in faults if not fault.startswith(tuple(f"{name}{end}" for name in variables for end in ":_"))
    ]


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
