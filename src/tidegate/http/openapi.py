"""What the OpenAPI document says of every route beside its own models: errors, credentials, streams.

It is read from the route object: what it depends on, its method and what it takes. So a route that is added is told of
rightly without anybody adding it here, and nothing hangs on a path's name but that validation under /v1 is a 400.

A status is listed where a route of this kind can answer it: on every route what the edge itself refuses, and an error
of the gateway. All errors have one schema, `ErrorEnvelope`; a route with a report of its own for one (`/health`) has
both.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, Field
from starlette.routing import BaseRoute

from tidegate.accounts.dependencies import Sensitive, SensitiveCookie
from tidegate.auth.dependencies import get_caller
from tidegate.auth.page_session import CSRF_HEADER, require_own_page
from tidegate.http.body_limit import ROAD
from tidegate.http.road import RoadRoute

Json = dict[str, Any]

# The edge, the connection and the server answer these before any route is asked.
_ALWAYS: Final = frozenset({400, 408, 413, 431, 500, 503})
# An upstream's own refusals pass on, too.
_ROAD: Final = frozenset({400, 401, 403, 404, 409, 413, 422, 429, 502, 504})
_MEANINGS: Final = {
    400: "The request cannot be read, or something in it is wrong: under /v1 `param` names the field.",
    401: "There are no credentials, or they are not valid (any more).",
    403: "These credentials may not do this, or a cookie came with a request that is not the page's own.",
    404: "There is no such thing, or it is not for these credentials to see.",
    408: "The request did not come to its end in time.",
    409: "It contradicts what is there, or what happens at this moment.",
    413: "The body is larger than this route takes.",
    422: "A field is missing or wrong: `errors` lists them. Under /v1 it is an upstream that refused.",
    429: "A limit is reached: `Retry-After` says when to try again. With `insufficient_quota` it is no use to retry.",
    431: "The request's line and headers are too large.",
    500: "Something went wrong in the gateway. Its log tells more under the request's id.",
    502: "The upstream failed, or answered what was not asked for.",
    503: "There is no place before the deadline, a dependency is down, or this process stops.",
    504: "The upstream was too slow: the message says at what.",
}
_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`tg_…`), or the access token that a log-in gives.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same as a header of its own, as Anthropic's clients send it.",
    },
    "page": {
        "type": "apiKey",
        "in": "cookie",
        "name": "tidegate_access",
        "description": f"The page's session, from the page alone. What changes something needs `{CSRF_HEADER}: 1` too. "
        "Under https the name begins with `__Host-`.",
    },
    "page_refresh": {
        "type": "apiKey",
        "in": "cookie",
        "name": "tidegate_refresh",
        "description": "What the page's session is renewed by. Under https the name begins with `__Host-`.",
    },
}
_CALLER: Final[tuple[Json, ...]] = ({"bearer": []}, {"x-api-key": []}, {"page": []})
_REQUEST_ID: Final = {
    "description": "The request's label: in every line of the log, and in every error.",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9._-]+$"},
}
_RETRY_AFTER: Final = {"description": "When to try again, in seconds.", "schema": {"type": "integer", "minimum": 0}}
_CHALLENGE: Final = {"description": "Where credentials go (RFC 6750).", "schema": {"type": "string"}}
_OWN_PAGE: Final = {
    "name": CSRF_HEADER,
    "in": "header",
    "required": True,
    "description": "Only the gateway's own page can send it.",
    "schema": {"const": "1", "type": "string"},
}
_ENVELOPE: Final = {"$ref": "#/components/schemas/ErrorEnvelope"}


class FieldFault(BaseModel):
    """What is wrong with one field: where it is, from `body`, `query`, `path`, `header` or `cookie` on."""

    loc: list[str | int]
    message: str


class ErrorDetail(BaseModel):
    """`code` is for programs, `message` for people. `errors` comes with `validation_error`."""

    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
        "timeout_error",
    ]
    code: str = Field(examples=["validation_error", "rate_limit_exceeded"])
    message: str
    param: str | None
    errors: list[FieldFault] = Field([], description="Left out where there is nothing to list.")


class ErrorEnvelope(BaseModel):
    """The one body of every error of every route, which OpenAI's and Anthropic's clients read."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str | None


def complete(document: Json, routes: Iterable[BaseRoute]) -> None:
    """Puts what the routes can answer and need into a document that FastAPI made of the same routes."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= _schemas_of(ErrorEnvelope)
    components["securitySchemes"] = {name: dict(scheme) for name, scheme in _SCHEMES.items()}
    components["headers"] = {"RequestId": _REQUEST_ID, "RetryAfter": _RETRY_AFTER, "Challenge": _CHALLENGE}
    components["responses"] = {str(status): _error_answer(status, _ENVELOPE) for status in _MEANINGS}
    for context in iter_route_contexts(tuple(routes)):
        if isinstance(context.original_route, APIRoute):
            operations = document["paths"].get(context.path_format, {})
            for method in context.methods or ():
                operation = operations.get(method.lower())
                if operation is not None:
                    _tell(operation, _Route(context.original_route, method, context.path or "", context.dependant))


class _Route:
    """One route and method, as far as its answers hang on it."""

    def __init__(self, route: APIRoute, method: str, path: str, dependant: Dependant) -> None:
        self._is_road = isinstance(route, RoadRoute)
        self._under_v1 = path.startswith(ROAD)
        self._changes = method not in ("GET", "HEAD")
        self._parts = tuple(_flat(dependant))
        self._calls: list[object] = [part.call for part in self._parts]
        self._sensitive = [call for call in self._calls if isinstance(call, Sensitive)]
        self.wants_own_page = require_own_page in self._calls
        self.has_caller = get_caller in self._calls

    def statuses(self) -> frozenset[int]:
        """Every status of an error that it can answer."""
        found = set(_ALWAYS | (_ROAD if self._is_road else set()))
        # Who logs in or brings a token is refused like one who brings credentials.
        if self.has_caller or self._sensitive:
            found |= {401, 403}
        if self.wants_own_page:
            found.add(403)
        if self._takes("path_params") or (self.has_caller and self._takes("query_params", "body_params")):
            found.add(404)
        if self._changes:
            found.add(409)
        if not self._under_v1 and self._takes("path_params", "query_params", "header_params", "body_params"):
            found.add(422)
        if self.has_caller or self._sensitive:
            found.add(429)
        return frozenset(found)

    def security(self) -> list[Json]:
        if self.has_caller:
            return [dict(scheme) for scheme in _CALLER]
        cookies = [call for call in self._sensitive if isinstance(call, SensitiveCookie)]
        # Who has no session is signed out already.
        return [{"page_refresh": []}, *([{}] if cookies[0].name == "logout" else [])] if cookies else []

    def _takes(self, *kinds: str) -> bool:
        return any(getattr(part, kind) for part in self._parts for kind in kinds)


def _tell(operation: Json, route: _Route) -> None:
    security = route.security()
    if security:
        operation["security"] = security
    if route.wants_own_page:
        operation.setdefault("parameters", []).append(dict(_OWN_PAGE))
    responses = operation["responses"]
    # FastAPI's own, of a form that no answer here has.
    responses.pop("422", None)
    for status in sorted(route.statuses()):
        written = str(status)
        own = responses.get(written)
        # A route's own reference comes back from FastAPI with a description beside it.
        if own is None or "$ref" in own:
            responses[written] = {"$ref": f"#/components/responses/{written}"}
        else:
            schema = own["content"]["application/json"]["schema"]
            responses[written] = _error_answer(status, {"allOf": [_ENVELOPE, schema]})
    for written, answer in responses.items():
        if "$ref" in answer:
            responses[written] = {"$ref": answer["$ref"]}
        elif int(written) < 400:
            answer["description"] = _DONE.get(int(written), "Done.")
            answer.setdefault("headers", {})["X-Request-ID"] = {"$ref": "#/components/headers/RequestId"}
    operation["responses"] = dict(sorted(responses.items()))


_DONE: Final = {201: "It is made.", 202: "It is under way.", 204: "Done; there is nothing to say."}


def _error_answer(status: int, schema: Json) -> Json:
    headers = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/Challenge"}
    if status in (429, 503):
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    return {
        "description": _MEANINGS[status],
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }


def _schemas_of(model: type[BaseModel]) -> Json:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    found: Json = schema.pop("$defs", {})
    return {**found, model.__name__: schema}


def _flat(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _flat(part)
