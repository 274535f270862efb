"""What the metrics are told of a request, once, when its entry is terminal.

Models are named as the catalogue has them and codes are ours, so no caller and no upstream makes a new series.
"""

from decimal import Decimal

from tidegate.ledger.entry import Entry
from tidegate.telemetry.metrics import families
from tidegate.telemetry.metrics.series import OTHER, Counter, Metrics, Tally

_TOKEN_CLASSES = ("input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning")
_NANO = 1_000_000_000


class RoadMetrics:
    """The road's series.

    >>> road = RoadMetrics(metrics)
    >>> road.observe(entry, model="openai/*", gaps=None, topped_up_nano=0)
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._codes = families.error_codes()
        self._series: dict[tuple[str, str | None], _Series] = {}
        self._attempts: dict[tuple[str, str], Counter] = {}

    def observe(self, entry: Entry, *, model: str, gaps: Tally | None, topped_up_nano: int) -> None:
        """`model` is the catalogue's name, `topped_up_nano` what was reserved on the way, in nano-USD."""
        series = self._series.get((model, entry.upstream))
        if series is None:
            series = self._series[model, entry.upstream] = _Series(self._metrics, model, entry.upstream or "")
        code = entry.error_code
        series.ended(entry.outcome, code if code is None or code in self._codes else OTHER)
        series.duration.observe(entry.duration_ms / 1000)
        if entry.ttft_ms is not None and entry.streamed:
            series.ttft.observe(entry.ttft_ms / 1000)
        if entry.queue_ms is not None:
            series.queue_wait.observe(entry.queue_ms / 1000)
        if gaps is not None:
            series.gaps.add(gaps)
        if entry.cache is not None:
            self._metrics.counter(families.CACHE, model, entry.cache).add()
        if entry.attempts:
            self._of_attempts(entry, series, model, topped_up_nano)

    def _of_attempts(self, entry: Entry, series: "_Series", model: str, topped_up_nano: int) -> None:
        for attempt in entry.attempts:
            name = attempt.upstream, attempt.outcome
            counter = self._attempts.get(name)
            if counter is None:
                counter = self._attempts[name] = self._metrics.counter(families.ATTEMPTS, *name)
            counter.add()
        series.count_tokens(entry)
        if entry.cost is None:
            series.unpriced.add()
            return
        series.cost.add(float(entry.cost))
        if entry.reserved_cost is not None and entry.cost > entry.reserved_cost:
            more = entry.cost - entry.reserved_cost - Decimal(topped_up_nano) / _NANO
            if more > 0:
                self._metrics.counter(families.UNDERESTIMATED, model).add(float(more))


class _Series:
    """The series of one model and upstream."""

    __slots__ = (
        "_by_ending",
        "_labels",
        "_metrics",
        "cost",
        "duration",
        "gaps",
        "queue_wait",
        "tokens",
        "ttft",
        "unpriced",
    )

    def __init__(self, metrics: Metrics, model: str, upstream: str) -> None:
        labels = self._labels = model, upstream
        self._metrics = metrics
        self._by_ending: dict[tuple[str, str | None], Counter] = {}
        self.duration = metrics.histogram(families.DURATION, *labels)
        self.ttft = metrics.histogram(families.TTFT, *labels)
        self.queue_wait = metrics.histogram(families.QUEUE_WAIT, *labels)
        self.gaps = metrics.histogram(families.TOKEN_GAP, *labels)
        self.tokens = tuple(metrics.counter(families.TOKENS, *labels, one) for one in _TOKEN_CLASSES)
        self.cost = metrics.counter(families.COST, *labels)
        self.unpriced = metrics.counter(families.UNPRICED, *labels)

    def ended(self, outcome: str, code: str | None) -> None:
        counter = self._by_ending.get((outcome, code))
        if counter is None:
            counter = self._metrics.counter(families.REQUESTS, *self._labels, outcome, code or "")
            self._by_ending[outcome, code] = counter
        counter.add()

    def count_tokens(self, entry: Entry) -> None:
        """Most entries have two classes: the others cost them a look."""
        of_input, cached_input, cache_write, cache_write_1h, output, reasoning = self.tokens
        of_input.add(entry.input_tokens)
        output.add(entry.output_tokens)
        if entry.cached_input_tokens:
            cached_input.add(entry.cached_input_tokens)
        if entry.cache_write_tokens:
            cache_write.add(entry.cache_write_tokens)
        if entry.cache_write_1h_tokens:
            cache_write_1h.add(entry.cache_write_1h_tokens)
        if entry.reasoning_tokens:
            reasoning.add(entry.reasoning_tokens)
