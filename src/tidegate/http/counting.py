"""Every request counted at its true end, by the route's template: a path that is made up makes no series.

What became of a request on the road is told by its entry (`inference.observation`); here it is one more answer.
"""

import time
from collections.abc import MutableMapping
from typing import Any

from tidegate.http.context import RequestContext
from tidegate.telemetry.metrics import families
from tidegate.telemetry.metrics.series import OTHER, Counter, Histogram, Metrics

STATE_KEY = "request_counts"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestCounts:
    """Counts the requests of one process. The edge finds it in the lifespan's state.

    >>> RequestCounts(metrics).count(scope, context)
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._codes = families.error_codes()
        self._requests: dict[tuple[str, str, int], Counter] = {}
        self._durations: dict[str, Histogram] = {}

    def count(self, scope: MutableMapping[str, Any], context: RequestContext) -> None:
        # A hot route is found by its path, and has no other template.
        route: str = context.path if context.is_on_road else getattr(scope.get("route"), "path", "")
        method = context.method if context.method in _METHODS else OTHER
        name = route, method, (context.status or 0) // 100
        counter = self._requests.get(name)
        if counter is None:
            counter = self._metrics.counter(families.HTTP_REQUESTS, route, method, f"{name[2]}xx")
            self._requests[name] = counter
        counter.add()
        code = context.error_code
        if code is not None:
            # An upstream's refusal is passed on with its own code.
            self._metrics.counter(families.HTTP_ERRORS, route, code if code in self._codes else OTHER).add()
        if context.entry is None:
            duration = self._durations.get(route)
            if duration is None:
                duration = self._durations[route] = self._metrics.histogram(families.HTTP_DURATION, route)
            duration.observe(time.perf_counter() - context.started)
