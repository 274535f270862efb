"""Every route of the app as an attacker finds it: methods, paths, parameters, and bodies that are valid.

Nothing here names a route but `PUBLIC`. What a new parameter or field needs, and does not have, fails with words.
"""

import functools
import itertools
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

import tidegate.dashboard.endpoints
from tidegate.app import create_app
from tidegate.settings import Settings

Json = dict[str, Any]
Place = tuple[str | int, ...]
"""Where in a body: names, and 0 for a list's first."""

_SIGNING_IN = "what is sent is itself the credential"
PUBLIC: Final[Mapping[str, str]] = {
    "/health": "an orchestrator asks without a credential",
    "/health/live": "an orchestrator asks without a credential",
    "/health/ready": "an orchestrator asks without a credential",
    "/metrics": "on loopback outside of production, and on the management port; elsewhere it asks for the scope",
    "/auth/login": _SIGNING_IN,
    "/auth/refresh": _SIGNING_IN,
    "/auth/logout": _SIGNING_IN,
    "/auth/page/login": _SIGNING_IN,
    "/auth/page/refresh": _SIGNING_IN,
    "/auth/page/logout": _SIGNING_IN,
    "/auth/password/forgot": "who forgot a password has none",
    "/auth/password/reset": _SIGNING_IN,
    "/auth/email/confirm": _SIGNING_IN,
    "/auth/invitations/accept": _SIGNING_IN,
    "/.well-known/jwks.json": "public keys",
    "/auth/sso": "the page asks before one signs in",
    "/auth/sso/login": "the way to sign in",
    "/auth/sso/callback": "the provider sends the browser here, with the proof",
    "/openapi.json": "not in production",
    "/docs": "not in production",
    "/redoc": "not in production",
}

# What a field of this name holds where any string of its schema would not do.
SAMPLES: Final[Mapping[str, Any]] = {
    "window": "day",
    "meter": "requests",
    "amount": 1000,
    "default_amount": 10,
    "most_amount": 20,
    "scope": "workspace",
    "zone": "Europe/Berlin",
    "password": "quite another horse stable",
    "current_password": "not the one that it is",
    "prefix": "abcd2345",
    "key_prefix": "abcd2345",
    "since": "7d",
    "until": "1d",
    "action": "key.",
    "model": "echo",
    "allowed_addresses": ["192.0.2.0/24"],
    "messages": [{"role": "user", "content": "hi"}],
    "expires_at": "2040-01-31T12:00:00Z",
    "overlap": "1h",
}
_emails = itertools.count()


@dataclass(frozen=True)
class Parameter:
    """`where` is path, query or body; `place` says where in the body."""

    name: str
    where: str
    schema: Json
    place: Place = ()

    @property
    def is_text(self) -> bool:
        return self.schema.get("type") == "string" and "enum" not in self.schema and "const" not in self.schema

    @property
    def is_an_id(self) -> bool:
        return self.schema.get("format") == "uuid" or self.name.endswith("_id")


@dataclass(frozen=True)
class Route:
    """`calls` is all that is called before the endpoint. `body` is its schema, None where it takes none.

    `is_a_page`: its endpoint is the dashboard's, which is the same for whoever asks.
    """

    method: str
    path: str
    calls: tuple[Any, ...]
    parameters: tuple[Parameter, ...] = ()
    body: Json | None = None
    is_a_page: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_public(self) -> bool:
        return self.path in PUBLIC or (self.is_a_page and not self.changes_something)

    @property
    def changes_something(self) -> bool:
        return self.method not in ("GET", "HEAD", "OPTIONS")

    def of(self, where: str) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.where == where]

    def url(self, values: Mapping[str, str] | None = None) -> str:
        """Its path with these values in place of its parameters, with an id of nobody for the others."""
        known = values or {}
        return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: known.get(found[1]) or self._sample(found[1]), self.path)

    def sample(self, place: Place = (), value: Any = None) -> Any:
        """A body that is valid, with `value` in one place of it."""
        assert self.body is not None
        return _sample(self.body, "", place, value)

    def _sample(self, name: str) -> str:
        schema = next((one.schema for one in self.of("path") if one.name == name), {})
        return str(uuid.uuid4()) if schema.get("format") == "uuid" else str(SAMPLES.get(name, "nobody"))


@functools.cache
def routes() -> tuple[Route, ...]:
    """Every method of every route, in the order of the app."""
    paths = _document()["paths"]
    found = []
    for context in iter_route_contexts(_app().routes):
        path = re.sub(r":\w+\}", "}", context.path or "")
        # A plain route of Starlette, such as the document's, has none.
        dependant: Dependant | None = getattr(context, "dependant", None)
        calls = tuple(_calls(dependant)) if dependant is not None else ()
        is_a_page = getattr(context.endpoint, "__module__", "") == tidegate.dashboard.endpoints.__name__
        for method in sorted(context.methods or ()):
            told = paths.get(path, {}).get(method.lower(), {})
            content = told.get("requestBody", {}).get("content", {}).get("application/json")
            body = None if content is None else content["schema"]
            found.append(Route(method, path, calls, tuple(_parameters(told, body)), body, is_a_page=is_a_page))
    return tuple(found)


def callers_routes() -> list[Route]:
    """Those that want a credential."""
    return [route for route in routes() if not route.is_public]


@functools.cache
def _app() -> Any:
    return create_app(Settings(environment="test"))


@functools.cache
def _document() -> Json:
    document: Json = _app().openapi()
    return document


def _calls(dependant: Dependant) -> Iterator[Callable[..., Any]]:
    for inner in dependant.dependencies:
        if inner.call is not None:
            yield inner.call
        yield from _calls(inner)


def _parameters(told: Json, body: Json | None) -> Iterator[Parameter]:
    for one in told.get("parameters", ()):
        yield Parameter(one["name"], one["in"], _plain(one["schema"])[0])
    if body is not None:
        yield from _fields(body, "", (), 4)


def _fields(schema: Json, name: str, place: Place, depth: int) -> Iterator[Parameter]:
    """Every leaf of a body's schema, each place once."""
    seen = set()
    for plain in _plain(schema):
        if depth and plain.get("type") == "object":
            for inner, below in plain.get("properties", {}).items():
                yield from _fields(below, inner, (*place, inner), depth - 1)
        elif depth and plain.get("type") == "array":
            yield from _fields(plain.get("items", {}), name, (*place, 0), depth - 1)
        elif plain.get("type") not in seen:
            seen.add(plain.get("type"))
            yield Parameter(name, "body", plain, place)


def _plain(schema: Json) -> list[Json]:
    """What a schema may be, without references and nulls."""
    if "$ref" in schema:
        return _plain(_document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices is None:
        return [schema]
    return [plain for choice in choices for plain in _plain(choice) if plain.get("type") != "null"] or [{}]


def _sample(schema: Json, name: str, place: Place, value: Any) -> Any:
    choices = _plain(schema)
    if not place:
        return value if value is not None else _any(choices[0], name)
    head, rest = place[0], place[1:]
    if head == 0:
        items = next(choice["items"] for choice in choices if "items" in choice)
        return [_sample(items, name, rest, value)]
    whole = next(choice for choice in choices if head in choice.get("properties", {}))
    return _object(whole) | {str(head): _sample(whole["properties"][head], str(head), rest, value)}


def _any(schema: Json, name: str) -> Any:
    if name in SAMPLES and SAMPLES[name] in schema.get("enum", (SAMPLES[name],)):
        return SAMPLES[name]
    if "const" in schema or "enum" in schema:
        return schema.get("const", (schema.get("enum") or [None])[0])
    match schema.get("type"):
        case "object":
            return _object(schema)
        case "array":
            return [_sample(schema["items"], name, (), None)] if schema.get("minItems") else []
        case "integer" | "number":
            return max(1, schema.get("minimum", 1))
        case "boolean":
            return False
    return _text(schema)


def _text(schema: Json) -> str:
    match schema.get("format"):
        case "uuid":
            return str(uuid.uuid4())
        case "email":
            return f"new-{next(_emails)}@example.com"
    least: int = schema.get("minLength", 1)
    return "x" * max(1, least)


def _object(schema: Json) -> Json:
    properties: Mapping[str, Json] = schema.get("properties", {})
    # A meter has a window beside it, though concurrency has none.
    required: Sequence[str] = [*schema.get("required", ()), *({"window"} & properties.keys())]
    return {name: _sample(properties[name], name, (), None) for name in required}
