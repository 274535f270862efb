"""The catalogue: which models callers may name, and the upstreams behind them.

It is immutable. `load_catalogue` reads it from the TOML that the settings name, or gives embedded mode's own, and
raises `CatalogueError` with every fault, each with its place and the nearest valid name. A request keeps the catalogue
that it began with.
"""

import difflib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    field_validator,
    model_validator,
)

from tidegate.ledger.prices import Price, price_from_catalogue, price_from_table
from tidegate.settings.references import is_reference
from tidegate.upstream.addresses import fault_of_url

Provider = Literal["openai", "local", "echo"]
# TOML has its own numbers, booleans and infinities: `true` is no count, `inf` no time.
Count = Annotated[int, Field(strict=True, gt=0)]
Seconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Rate = Annotated[Decimal, Field(ge=0, max_digits=20, decimal_places=12)]
Place = tuple[str | int, ...]
LONGEST_CACHE_S = 24 * 3600


class NamesDoNotMeet(ValueError):
    """Names in one place of the file that fit no other. `faults` are all, each with its place."""

    def __init__(self, faults: list[tuple[Place, str]]) -> None:
        super().__init__("; ".join(message for _, message in faults))
        self.faults = faults


def _form(value: Any) -> str:
    return "word" if isinstance(value, str) else "table"


# Credentials, and what belongs to one connection or to the body as we send it.
_NEVER_FORWARDED = frozenset(
    {"authorization", "x-api-key", "cookie", "proxy-authorization", "proxy-connection", "host", "connection"}
    | {"content-length", "content-type", "content-encoding", "accept", "accept-encoding", "transfer-encoding"}
    | {"keep-alive", "te", "trailer", "upgrade", "expect"}
)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class QueueLimits(_Table):
    length: Annotated[int, Field(strict=True, ge=0)] = 1000
    deadline_s: Seconds = 10


class Timeouts(_Table):
    """Seconds. `headers_s`, `first_token_s` and `idle_s` bound streamed requests; `total_s` bounds every request."""

    connect_s: Seconds = 5
    write_s: Seconds = 10
    headers_s: Seconds = 60
    first_token_s: Seconds = 60
    idle_s: Seconds = 30
    total_s: Seconds = 600


class BreakerSettings(_Table):
    """Opens after `failures` within `window_s`; while open, for `open_s`, attempts go past this upstream."""

    failures: Count = 5
    window_s: Seconds = 10
    open_s: Seconds = 5


class UpstreamTable(_Table):
    provider: Provider
    base_url: str | None = Field(None, max_length=2048, pattern=r"^https?://[^\s?#@/]+(/[^\s?#]*)?$")
    api_key: SecretStr | None = None
    speaks: tuple[Literal["chat", "completions", "embeddings", "responses", "messages"], ...] = ("chat",)
    max_concurrency: Count | None = None
    queue: QueueLimits = QueueLimits()
    usage_request: Literal["auto", "always", "never"] = "auto"
    count: Literal["tokenizer", "deltas"] | None = None
    timeouts: Timeouts = Timeouts()
    breaker: Annotated[
        Annotated[BreakerSettings, Tag("table")] | Annotated[Literal["off"], Tag("word")], Discriminator(_form)
    ] = BreakerSettings()
    forward_headers: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")], ...] = ()

    @field_validator("forward_headers")
    @classmethod
    def _no_credentials(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [name for name in names if name.lower() in _NEVER_FORWARDED]:
            raise ValueError(f"{bad[0]} is never sent on to an upstream")
        return tuple(name.lower() for name in names)

    @field_validator("base_url")
    @classmethod
    def _may_be_called(cls, url: str | None) -> str | None:
        if url is not None and (fault := fault_of_url(url)) is not None:
            raise ValueError(fault)
        return url

    @field_validator("speaks")
    @classmethod
    def _speaks_chat(cls, speaks: tuple[str, ...]) -> tuple[str, ...]:
        if "chat" not in speaks:
            raise ValueError('must hold "chat": it is the one protocol that is spoken to upstreams')
        return speaks

    @model_validator(mode="after")
    def _place_is_named(self) -> "UpstreamTable":
        if self.provider == "openai" and self.base_url is None:
            raise ValueError('an upstream of provider "openai" needs base_url, such as "https://api.openai.com/v1"')
        if self.provider != "openai" and (self.base_url or self.api_key):
            raise ValueError(f'base_url and api_key have no use with provider "{self.provider}"')
        return self


class PriceTable(_Table):
    """USD a million tokens, decimal strings."""

    input: Rate
    cached_input: Rate | None = None
    cache_write: Rate | None = None
    cache_write_1h: Rate | None = None
    output: Rate


class CacheSettings(_Table):
    """The response cache of a model's repeatable requests: how long an answer is kept."""

    ttl_s: Annotated[int, Field(strict=True, ge=1, le=LONGEST_CACHE_S)]


class ModelTable(_Table):
    name: str = Field(min_length=1, max_length=256)
    groups: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    attempts: tuple[Annotated[str, Field(pattern=r"^[^/\s]+/.+$")], ...] = Field(min_length=1, max_length=16)
    context_tokens: Count | None = None
    max_output_tokens: Count | None = None
    reserve_output_tokens: Count = 4096
    keepalive: Literal["comment", "off"] = "comment"
    keepalive_after_s: Seconds = 15
    price: Annotated[
        Annotated[PriceTable, Tag("table")] | Annotated[Literal["catalogue"], Tag("word")], Discriminator(_form)
    ] = "catalogue"
    cache: Annotated[
        Annotated[CacheSettings, Tag("table")] | Annotated[Literal["off"], Tag("word")], Discriminator(_form)
    ] = "off"


class CatalogueTable(_Table):
    """The file as it is written."""

    default_model: str | None = Field(None, max_length=256)
    upstreams: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")], UpstreamTable] = Field(min_length=1)
    models: tuple[ModelTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_meet(self) -> "CatalogueTable":
        if faults := list(_unmet(self)):
            raise NamesDoNotMeet(faults)
        return self


def _unmet(table: CatalogueTable) -> Iterator[tuple[Place, str]]:
    names = [model.name for model in table.models]
    for position, model in enumerate(table.models):
        if model.name in names[:position]:
            yield ("models", position, "name"), f"the name {model.name!r} stands twice"
        for attempt in model.attempts:
            place = ("models", position, "attempts")
            upstream = attempt.partition("/")[0]
            if upstream not in table.upstreams:
                yield place, f"{attempt!r}: there is no upstream {upstream!r}{nearest(upstream, table.upstreams)}"
            if attempt.endswith("*") and not model.name.endswith("*"):
                yield place, f"{attempt!r}: only a model whose name ends in * can pass the rest of it on"
    if table.default_model is not None and table.default_model not in names:
        yield ("default_model",), f"there is no model {table.default_model!r}{nearest(table.default_model, names)}"
    local = [name for name, upstream in table.upstreams.items() if upstream.provider == "local"]
    for name in local[1:]:
        yield ("upstreams", name), 'only one may have provider "local"; it is one process of this server'


def nearest(name: str, known: Iterable[str]) -> str:
    """What a fault adds: the nearest of the names that there are, else all."""
    there_are = list(known)
    near = difflib.get_close_matches(name, there_are, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(there_are)}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A configured connection to a provider. `api_key` is the resolved secret, never shown."""

    name: str
    provider: Provider
    base_url: str
    api_key: SecretStr | None
    max_concurrency: int
    queue: QueueLimits
    usage_request: Literal["auto", "always", "never"]
    count: Literal["tokenizer", "deltas"]
    timeouts: Timeouts
    breaker: BreakerSettings | None
    forward_headers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedAttempt:
    """One upstream to try, the model's name there, and what its tokens cost (None: unpriced)."""

    upstream: Upstream
    model: str
    price: Price | None


@dataclass(frozen=True, slots=True)
class Model:
    """A name that callers may use: an alias, or a pattern that ends in `*`. `cache_ttl_s` is None where it is off."""

    name: str
    groups: tuple[str, ...]
    attempts: tuple[PlannedAttempt, ...]
    context_tokens: int | None
    max_output_tokens: int | None
    reserve_output_tokens: int
    keepalive: bool
    keepalive_after_s: float
    listed_price: bool
    cache_ttl_s: int | None = None

    def matches(self, name: str) -> bool:
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models and upstreams. `version` tells two catalogues apart: it is of all that they say, but of keys only of
    where they stand.
    """

    upstreams: dict[str, Upstream]
    models: tuple[Model, ...]
    default_model: str | None
    version: str
    by_name: dict[str, Model]

    @property
    def base_urls(self) -> dict[str, str]:
        """Of each upstream, by name; empty for one that is here."""
        return {name: upstream.base_url for name, upstream in self.upstreams.items()}

    def find(self, name: str) -> Model | None:
        """The model of this name, else the longest pattern that takes it."""
        exact = self.by_name.get(name)
        if exact is not None:
            return exact
        patterns = [model for model in self.models if model.name.endswith("*") and model.matches(name)]
        return max(patterns, key=lambda model: len(model.name), default=None)

    def groups_of(self, name: str) -> tuple[str, ...]:
        """The groups of the model of this name, none where there is no such model."""
        model = self.find(name)
        return () if model is None else model.groups


def build_catalogue(table: CatalogueTable, secrets: dict[str, SecretStr | None]) -> Catalogue:
    """The catalogue of a valid file, with its secrets resolved."""
    upstreams = {name: _upstream(name, written, secrets.get(name)) for name, written in table.upstreams.items()}
    models = tuple(_model(written, upstreams) for written in table.models)
    return Catalogue(
        upstreams=upstreams,
        models=models,
        default_model=table.default_model,
        version=_version(table),
        by_name={model.name: model for model in models if not model.name.endswith("*")},
    )


def _version(table: CatalogueTable) -> str:
    # A secret's dump is asterisks. Where it stands is told of it, and is no secret; a literal, which only development
    # takes, stays out: a digest would let a weak one be guessed.
    keys = {name: upstream.api_key.get_secret_value() for name, upstream in table.upstreams.items() if upstream.api_key}
    places = [(name, key) for name, key in keys.items() if is_reference(key)]
    return hashlib.sha256(f"{table.model_dump_json()}{places!r}".encode()).hexdigest()[:12]


def embedded_table() -> dict[str, Any]:
    """Embedded mode's own catalogue: the small model of this machine. It costs nothing, which is a price."""
    return {
        "upstreams": {"local": {"provider": "local"}},
        "models": [
            {
                "name": "smollm2-135m-instruct",
                "attempts": ["local/smollm2-135m-instruct"],
                "context_tokens": 2048,
                "max_output_tokens": 2048,
                "reserve_output_tokens": 1024,
                "price": {"input": "0", "output": "0"},
            }
        ],
    }


@lru_cache(maxsize=1024)
def list_price(provider: str, model: str) -> Price | None:
    """The list price, looked up once a name; bounded, since names under a pattern come from callers."""
    return price_from_catalogue(provider, model) if provider == "openai" else None


def catalogue_path(configured: Path | None) -> Path | None:
    """The file that the catalogue is read from, None in embedded mode."""
    if configured is not None:
        return configured
    default = Path("tidegate.toml")
    return default if default.is_file() else None


def _upstream(name: str, written: UpstreamTable, api_key: SecretStr | None) -> Upstream:
    in_house = written.provider in ("local", "echo")
    return Upstream(
        name=name,
        provider=written.provider,
        base_url=(written.base_url or "").rstrip("/"),
        api_key=api_key,
        max_concurrency=written.max_concurrency or (4 if written.provider == "local" else 64),
        queue=written.queue,
        usage_request=written.usage_request,
        count=written.count or ("deltas" if in_house else "tokenizer"),
        timeouts=written.timeouts,
        breaker=None if written.breaker == "off" else written.breaker,
        forward_headers=written.forward_headers,
    )


def _model(written: ModelTable, upstreams: dict[str, Upstream]) -> Model:
    table = written.price if isinstance(written.price, PriceTable) else None
    configured = price_from_table(table.model_dump(exclude_none=True)) if table else None
    attempts = []
    for attempt in written.attempts:
        upstream_name, _, model = attempt.partition("/")
        upstream = upstreams[upstream_name]
        price = configured or list_price(upstream.provider, model.removesuffix("*"))
        attempts.append(PlannedAttempt(upstream, model, price))
    return Model(
        name=written.name,
        groups=written.groups,
        attempts=tuple(attempts),
        context_tokens=written.context_tokens,
        max_output_tokens=written.max_output_tokens,
        reserve_output_tokens=written.reserve_output_tokens,
        keepalive=written.keepalive == "comment",
        keepalive_after_s=written.keepalive_after_s,
        listed_price=table is None,
        cache_ttl_s=None if written.cache == "off" else written.cache.ttl_s,
    )
