"""What the routes of a running application are: who included them, who may call them, and how their fields are bound.

Read from the route objects themselves, so that it says what is served and not what was meant. It takes a tenth of a
second of CPU: for a thread, and once.
"""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter
from starlette.routing import BaseRoute

from tidegate.accounts.dependencies import Sensitive
from tidegate.accounts.tries import SENSITIVE
from tidegate.auth.dependencies import get_caller
from tidegate.http.road import RoadRoute
from tidegate.inference.wire import ChatRequest

# Whose routes are nobody's without a credential.
_CALLED_BY_SOMEBODY = ("/v1/", "/api/")
_DOCS = ("/docs", "/redoc", "/openapi.json")
_TEXT_BOUNDS = {"maxLength", "pattern", "format"}
_NUMBER_BOUNDS = {"maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"}

_ANY_TEXT = "(text of any length)"

Schema = dict[str, Any]


def facts_of_routes(app: FastAPI) -> dict[str, Any]:
    """As JSON takes it. Names are `METHOD /path`, fields `METHOD /path: field`."""
    contexts = list(iter_route_contexts(app.routes))
    trees = [(context, list(_tree(context.dependant))) for context in contexts if _has_dependant(context)]
    fields = [(_name(context), field) for context, tree in trees for each in tree for field in _fields(each)]
    loose = {f"{name}: {where}" for name, field in fields for where in _loose_in(field)}
    # The road reads its body by itself. What a message says is bounded by the body alone.
    on_road = {f"POST /v1/chat/completions: {where}" for where in _loose_in(("body", ChatRequest))}
    by_body = {each for each in on_road if each.endswith(_ANY_TEXT)}
    return {
        "routes": len(contexts),
        "routers": sum(not _stands_alone(route) for route in app.router.routes),
        "loose": [_name(route) for route in app.router.routes if _stands_alone(route)],
        "handlers": sorted(kind.__name__ for kind in app.exception_handlers if isinstance(kind, type)),
        "dependencies": sum(len(tree) - 1 for _, tree in trees),
        "overridden": sorted(getattr(call, "__name__", repr(call)) for call in app.dependency_overrides),
        "without_caller": sorted(
            _name(context)
            for context, tree in trees
            if (context.path or "").startswith(_CALLED_BY_SOMEBODY) and get_caller not in {each.call for each in tree}
        ),
        "fields": len(fields) + len(ChatRequest.model_fields),
        "unconstrained": sorted(loose | on_road - by_body),
        "bounded_by_body": sorted(by_body),
        "docs": sorted({path for context in contexts if (path := context.path or "") in _DOCS}),
        "streaming": sorted(_name(context) for context in contexts if isinstance(context.original_route, RoadRoute)),
        "limited": _limited(trees),
    }


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for needed in dependant.dependencies:
        yield from _tree(needed)


def _has_dependant(context: Any) -> bool:
    return isinstance(context.original_route, APIRoute)


def _stands_alone(route: BaseRoute) -> bool:
    """Whether it was put into the application itself, by no router."""
    return hasattr(route, "path")


def _name(route: Any) -> str:
    methods = sorted(getattr(route, "methods", None) or ())
    return " ".join([*methods, str(getattr(route, "path", route))])


def _limited(trees: list[tuple[Any, list[Dependant]]]) -> dict[str, dict[str, int]]:
    """The tries in 15 minutes that stand before sensitive routes, by name; 0 where none are counted by it."""
    names = set()
    for _, tree in trees:
        for each in tree:
            call: Any = each.call
            if isinstance(call, Sensitive):
                names.add(call.name)
    return {
        name: {"account": SENSITIVE[name].by_account, "address": SENSITIVE[name].by_address} for name in sorted(names)
    }


def _fields(dependant: Dependant) -> Iterator[tuple[str, Any]]:
    params = (
        *dependant.path_params,
        *dependant.query_params,
        *dependant.header_params,
        *dependant.cookie_params,
        *dependant.body_params,
    )
    for param in params:
        yield param.name, Annotated[param.field_info.annotation, param.field_info]


def _loose_in(field: tuple[str, Any]) -> Iterator[str]:
    """The places in a field where anything of a kind is taken, however long or large."""
    name, kind = field
    schema = TypeAdapter(kind).json_schema()
    yield from _loose(schema, name, schema.get("$defs", {}), set())


def _loose(schema: Schema, where: str, definitions: Schema, seen: set[str]) -> Iterator[str]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            seen.add(name)
            yield from _loose(definitions[name], where, definitions, seen)
        return
    alternatives = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if alternatives:
        for each in alternatives:
            yield from _loose(each, where, definitions, seen)
        return
    if "enum" in schema or "const" in schema:
        return
    match schema.get("type"):
        case "string" if not _TEXT_BOUNDS & schema.keys():
            yield f"{where} {_ANY_TEXT}"
        case "integer" | "number" if not _NUMBER_BOUNDS & schema.keys():
            yield f"{where} (any number)"
        case "array":
            if not {"maxItems", "prefixItems"} & schema.keys():
                yield f"{where} (a list of any length)"
            yield from _loose(schema.get("items", {"const": None}), f"{where}[]", definitions, seen)
        case "object":
            for name, inner in schema.get("properties", {}).items():
                yield from _loose(inner, f"{where}.{name}", definitions, seen)
            others = schema.get("additionalProperties")
            if isinstance(others, dict):
                if "maxProperties" not in schema:
                    yield f"{where} (a mapping of any size)"
                yield from _loose(others, f"{where}{{}}", definitions, seen)
            elif "properties" not in schema:
                yield f"{where} (any object)"
        case None:
            yield f"{where} (anything)"
