"""Every metric that a server shows, by name: `FAMILIES` is the list, and `docs/guide/monitoring.md` is tested by it.

Labels take values of a closed set or of the catalogue, never what a caller wrote: a model is the catalogue's name (of
a pattern the pattern), a route its template. Times are seconds, money USD.
"""

from tidegate.errors import TidegateError
from tidegate.telemetry.metrics.series import Family

_TTFT_S = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0, 20.0, 40.0, 60.0)
_GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
_DURATION_S = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 7.5, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_WAIT_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ANSWER_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BY_MODEL = ("model", "upstream")

REQUESTS = Family(
    "tidegate_requests_total",
    "Requests that got a ledger entry, by how they ended. upstream is empty where none answered.",
    (*_BY_MODEL, "outcome", "error_code"),
)
ATTEMPTS = Family("tidegate_attempts_total", "Calls of upstreams, by how they ended.", ("upstream", "outcome"))
TTFT = Family("tidegate_ttft_seconds", "From arrival to the first content of streams.", _BY_MODEL, "histogram", _TTFT_S)
TOKEN_GAP = Family(
    "tidegate_token_gap_seconds", "Between pieces of a stream, once it has begun.", _BY_MODEL, "histogram", _GAP_S
)
DURATION = Family(
    "tidegate_request_duration_seconds",
    "From arrival to the end of requests that got a ledger entry.",
    _BY_MODEL,
    "histogram",
    _DURATION_S,
)
QUEUE_WAIT = Family(
    "tidegate_queue_wait_seconds", "Waited for upstreams' slots, also in vain.", _BY_MODEL, "histogram", _WAIT_S
)
TOKENS = Family("tidegate_tokens_total", "Tokens by class; the classes are disjoint.", (*_BY_MODEL, "class"))
COST = Family("tidegate_cost_usd_total", "What requests cost, in USD.", _BY_MODEL)
UNPRICED = Family("tidegate_unpriced_requests_total", "Requests whose cost is unknown.", _BY_MODEL)
UNDERESTIMATED = Family(
    "tidegate_underestimated_cost_usd_total", "By how much requests cost more than was reserved, in USD.", ("model",)
)
CACHE = Family("tidegate_response_cache_total", "Requests that asked the response cache.", ("model", "result"))

HTTP_REQUESTS = Family(
    "tidegate_http_requests_total",
    "Requests to every route, by its template; route is empty where none matched.",
    ("route", "method", "status"),
)
HTTP_ERRORS = Family("tidegate_http_errors_total", "Errors that were answered, by their code.", ("route", "error_code"))
HTTP_DURATION = Family(
    "tidegate_http_request_duration_seconds",
    "From arrival to the end of requests without a ledger entry.",
    ("route",),
    "histogram",
    _ANSWER_S,
)

SLOTS_IN_USE = Family("tidegate_slots_in_use", "Slots of an upstream that are held.", ("upstream",), "gauge")
SLOTS = Family("tidegate_slots", "Slots that an upstream has.", ("upstream",), "gauge", over_workers="greatest")
QUEUE_LENGTH = Family("tidegate_queue_length", "Requests that wait for a slot.", ("upstream",), "gauge")
BREAKER_OPEN = Family("tidegate_breaker_open", "Workers whose breaker is open.", ("upstream",), "gauge")
RUNNING = Family("tidegate_running_requests", "Requests with an open ledger entry.", kind="gauge")
DEGRADED = Family("tidegate_degraded", "Workers that go without this.", ("what",), "gauge")
JUDGED_ALONE = Family(
    "tidegate_limits_judged_alone_total", "Steps of limits that a worker judged without the shared store."
)
FORGOTTEN_ENDS = Family(
    "tidegate_limits_forgotten_ends_total", "Ended requests that the shared store will never be told of."
)
ALERTS = Family("tidegate_limit_alerts_total", "Alerts of limits, by level in percent.", ("level",))
ALERTS_DROPPED = Family("tidegate_limit_alerts_dropped_total", "Alerts that the webhook did not take.")
LEDGER_LAG = Family(
    "tidegate_ledger_lag_seconds",
    "For how long the database lacks what the journal has.",
    kind="gauge",
    over_workers="greatest",
)
LEDGER_BEHIND = Family("tidegate_ledger_behind", "Workers whose entries the database does not take.", kind="gauge")

WORKERS = Family("tidegate_workers", "Workers that serve.", kind="gauge")
DRAINING = Family("tidegate_draining_workers", "Workers that take no new request.", kind="gauge")
LOOP_LAG = Family("tidegate_loop_lag_seconds", "By how much the event loop was late.", (), "histogram", _LAG_S)
POOL_IN_USE = Family("tidegate_pool_connections_in_use", "Connections that are taken.", ("pool",), "gauge")
POOL_LIMIT = Family("tidegate_pool_connections_limit", "Connections that may be taken.", ("pool",), "gauge")
MEMORY = Family("tidegate_resident_memory_bytes", "Resident memory of all workers.", kind="gauge")
MEMORY_GREATEST = Family(
    "tidegate_resident_memory_greatest_bytes",
    "Resident memory of the largest worker.",
    kind="gauge",
    over_workers="greatest",
)
DESCRIPTORS = Family("tidegate_open_descriptors", "Open files and sockets of all workers.", kind="gauge")
CPU = Family("tidegate_cpu_seconds_total", "CPU time of all workers.")
TRACE_SPANS = Family("tidegate_trace_spans_total", "Spans of traces, by what became of them.", ("result",))

# Of the worker that is asked.
BUILD_INFO = Family("tidegate_build_info", "What runs.", ("version", "python"), "gauge")
CATALOGUE_INFO = Family("tidegate_catalogue_info", "The catalogue in force.", ("version",), "gauge")

FAMILIES = (
    REQUESTS,
    ATTEMPTS,
    TTFT,
    TOKEN_GAP,
    DURATION,
    QUEUE_WAIT,
    TOKENS,
    COST,
    UNPRICED,
    UNDERESTIMATED,
    CACHE,
    HTTP_REQUESTS,
    HTTP_ERRORS,
    HTTP_DURATION,
    SLOTS_IN_USE,
    SLOTS,
    QUEUE_LENGTH,
    BREAKER_OPEN,
    RUNNING,
    DEGRADED,
    JUDGED_ALONE,
    FORGOTTEN_ENDS,
    ALERTS,
    ALERTS_DROPPED,
    LEDGER_LAG,
    LEDGER_BEHIND,
    WORKERS,
    DRAINING,
    LOOP_LAG,
    POOL_IN_USE,
    POOL_LIMIT,
    MEMORY,
    MEMORY_GREATEST,
    DESCRIPTORS,
    CPU,
    TRACE_SPANS,
    BUILD_INFO,
    CATALOGUE_INFO,
)


def error_codes() -> frozenset[str]:
    """The codes of our own errors: what an upstream calls its error is no label."""
    return frozenset(_codes(TidegateError))


def _codes(kind: type[TidegateError]) -> set[str]:
    return {kind.code}.union(*(_codes(narrower) for narrower in kind.__subclasses__()))
