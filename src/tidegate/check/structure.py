"""Items 1.1 to 1.5: how the application is made, read from the routes and settings that serve."""

from tidegate.check.subject import Subject
from tidegate.check.verdicts import Check, Judged

_HANDLED = {"HTTPException", "RequestValidationError", "ResponseValidationError", "Exception", "TidegateError"}
_MOST_NAMED = 3
# What each probe is to be answered with.
REFUSALS = {
    "bad_request": (400, "invalid_request"),
    "unauthorized": (401, "missing_credentials"),
    "not_found": (404, "not_found"),
    "method_not_allowed": (405, "method_not_allowed"),
    "too_large": (413, "request_too_large"),
    "unprocessable": (422, "validation_error"),
}
_OUT_OF_RANGE = ("unprocessable", "out_of_range_text", "out_of_range_number", "out_of_range_kind")


def routers(subject: Subject) -> Judged:
    loose, count, routes = (subject.one("routes", name) for name in ("loose", "routers", "routes"))
    if loose:
        return "fail", f"on no router: {named(loose)}: move it to its feature's APIRouter"
    if not count:
        return "fail", "the application includes no router"
    return "pass", f"{some(routes, 'route')}, all on the {some(count, 'router')} that create_app includes"


def settings(subject: Subject) -> Judged:
    read = subject.one("settings")
    if not (read["is_typed"] and read["is_frozen"] and read["forbids_unknown"]):
        return "fail", "the settings are not frozen Pydantic BaseSettings that refuse what they do not know"
    if subject.strays:
        return "fail", f"reads the environment past the settings: {named(subject.strays)}"
    if read["unknown"]:
        return "partial", f"a variable that nothing reads is set: {named(read['unknown'])}"
    digests = len(read["digests"])
    among = some(len(subject.workers), "worker")
    told = f"{digests} typed groups and values, frozen, the same in {among}; nothing else reads os.environ"
    # Worth knowing where this is shown to somebody; a network of one's own may make it right.
    open_to_it = read.get("in_the_clear")
    return "pass", f"{told}; in the clear beyond this machine: {'; '.join(open_to_it)}" if open_to_it else told


def errors(subject: Subject) -> Judged:
    missing = _HANDLED - set(subject.one("routes", "handlers"))
    if missing:
        return "fail", f"no exception handler for {named(sorted(missing))}"
    for name, (status, code) in REFUSALS.items():
        answer = subject.seen[name]
        if answer.error is not None:
            return "unknown", f"{status}: no answer ({answer.error})"
        if answer.status != status or answer.code != code:
            return "fail", f"{status} was to be {code!r} in the envelope; it was {answer.status} {answer.code!r}"
        if answer.body.get("request_id") != answer.headers.get("x-request-id"):
            return "fail", f"the envelope of {status} does not name its request"
    statuses = " ".join(str(status) for status, _ in REFUSALS.values())
    return (
        "pass",
        f"asked: {statuses} came in the one envelope with their request ids; a handler stands for every other",
    )


def injection(subject: Subject) -> Judged:
    overridden = subject.one("routes", "overridden")
    if overridden:
        return "fail", f"a running server has overridden dependencies: {named(overridden)}"
    uncalled = subject.one("routes", "without_caller")
    if uncalled:
        return "fail", f"asks for no caller: {named(uncalled)}: add the feature's Caller, or RequireScope"
    if subject.seen["unauthorized"].status != 401:
        return "fail", f"/v1/models without a credential was answered {subject.seen['unauthorized'].told}, not 401"
    count = subject.one("routes", "dependencies")
    return (
        "pass",
        f"{count} dependencies by Depends, none overridden; every route of /v1 and /api has its caller by one",
    )


def strictness(subject: Subject) -> Judged:
    loose = subject.one("routes", "unconstrained")
    if loose:
        return "fail", f"takes anything: {named(loose)}: bound it (Field(max_length=…), Literal, PositiveInt)"
    for name in _OUT_OF_RANGE:
        answer = subject.seen[name]
        if answer.error is not None:
            return "unknown", f"an input out of range had no answer ({answer.error})"
        if not 400 <= answer.status < 500:
            return "fail", f"an input out of range ({name}) was answered {answer.status}, not 4xx"
    fields = subject.one("routes", "fields")
    by_body = len(subject.one("routes", "bounded_by_body"))
    largest = subject.one("http", "max_body_bytes")
    told = f"{fields} fields of requests, each constrained ({by_body} texts of messages by the body's {largest} bytes)"
    return "pass", f"{told}; {len(_OUT_OF_RANGE)} inputs out of range were each a 4xx"


def some(count: int, what: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def named(names: "list[str] | tuple[str, ...]") -> str:
    """The first of them, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


CHECKS = (
    Check("1.1", "Modular routes, APIRouter", routers),
    Check("1.2", "Pydantic BaseSettings", settings),
    Check("1.3", "Standard exception handlers", errors),
    Check("1.4", "Dependency injection", injection),
    Check("1.5", "Strict Pydantic types", strictness),
)
