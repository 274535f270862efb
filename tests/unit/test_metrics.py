"""Series: what they count, what they cost in number, and how they read in Prometheus' format."""

import asyncio
import json
import random
import re
import string
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ledger_entries import an_attempt, an_entry
from tests.support.metrics import Scrape
from tidegate.errors import Unavailable
from tidegate.http.context import RequestContext
from tidegate.http.counting import RequestCounts
from tidegate.inference.observation import RoadMetrics
from tidegate.ledger.entry import Entry
from tidegate.telemetry.loop_lag import LoopLag
from tidegate.telemetry.metrics import families, folding, series
from tidegate.telemetry.metrics.cells import CellFile
from tidegate.telemetry.metrics.exposition import Exposition
from tidegate.telemetry.metrics.series import Family, Metrics, Tally

MANY = 10_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    metrics = Metrics(CellFile.create(tmp_path))
    yield metrics
    metrics.close()


def made_up() -> str:
    return "".join(random.choices(string.printable, k=random.randrange(1, 40)))


def answered(counts: RequestCounts, method: str = "GET", path: str = "/", **fields: Any) -> None:
    context = RequestContext("r-1", method, path)
    scope = {"route": fields.pop("route")} if "route" in fields else {}
    for name, value in {"status": 200, **fields}.items():
        setattr(context, name, value)
    counts.count(scope, context)


def an_answered_entry(**fields: Any) -> Entry:
    attempts = [an_attempt(1, upstream="first", outcome="upstream_failed"), an_attempt(2, upstream="second")]
    said = {"upstream": "second", "streamed": True, "duration_ms": 1500, "ttft_ms": 300, "queue_ms": 20}
    tokens = {"input_tokens": 7, "output_tokens": 5, "reasoning_tokens": 2, "cache_write_tokens": 1}
    money = {"cost": Decimal("0.25"), "reserved_cost": Decimal("0.2")}
    return an_entry(**{**said, **tokens, **money, "attempts": attempts, **fields})


def test_an_entry_is_told_by_model_and_upstream(metrics: Metrics, tmp_path: Path) -> None:
    gaps = Tally(families.TOKEN_GAP.bounds)
    for now in (1.0, 1.25, 1.3):
        gaps.mark(now)
    road = RoadMetrics(metrics)
    for _ in range(2):
        road.observe(an_answered_entry(cache="miss"), model="m", gaps=gaps, topped_up_nano=20_000_000)
    told = Scrape.read(tmp_path)
    by = {"model": "m", "upstream": "second"}
    assert told.value("tidegate_requests_total", **by, outcome="completed", error_code="") == 2
    assert told.value("tidegate_attempts_total", upstream="first", outcome="upstream_failed") == 2
    assert told.value("tidegate_attempts_total", upstream="second", outcome="completed") == 2
    classes = {"input": 14, "output": 10, "reasoning": 4, "cache_write": 2, "cached_input": 0, "cache_write_1h": 0}
    assert {one: told.value("tidegate_tokens_total", **by, **{"class": one}) for one in classes} == classes
    assert told.value("tidegate_cost_usd_total", **by) == 0.5
    assert told.value("tidegate_underestimated_cost_usd_total", model="m") == pytest.approx(2 * 0.03)
    assert told.value("tidegate_response_cache_total", model="m", result="miss") == 2
    for name, total, count in (
        ("request_duration", 3, 2),
        ("ttft", 0.6, 2),
        ("queue_wait", 0.04, 2),
        ("token_gap", 0.6, 4),
    ):
        assert told.value(f"tidegate_{name}_seconds_sum", **by) == pytest.approx(total), name
        assert told.value(f"tidegate_{name}_seconds_count", **by) == count, name
    below = {
        le: told.value("tidegate_token_gap_seconds_bucket", **by, le=le)
        for le in ("0.035", "0.05", "0.2", "0.5", "+Inf")
    }
    assert below == {"0.035": 0, "0.05": 2 if 1.3 - 1.25 <= 0.05 else 0, "0.2": 2, "0.5": 4, "+Inf": 4}


def test_an_entry_without_figures_tells_none(metrics: Metrics, tmp_path: Path) -> None:
    refused = an_entry(outcome="rejected", error_code="overloaded", queue_ms=10_000, duration_ms=10_000)
    RoadMetrics(metrics).observe(refused, model="m", gaps=None, topped_up_nano=0)
    unpriced = an_answered_entry(cost=None, streamed=False, upstream="u")
    RoadMetrics(metrics).observe(unpriced, model="m", gaps=None, topped_up_nano=0)
    told = Scrape.read(tmp_path)
    assert told.value("tidegate_requests_total", upstream="", outcome="rejected", error_code="overloaded") == 1
    assert told.value("tidegate_queue_wait_seconds_sum", upstream="") == 10
    assert told.value("tidegate_unpriced_requests_total", upstream="u") == 1
    assert told.value("tidegate_cost_usd_total") == 0
    # Of an answer that is not streamed the first token comes with the last.
    assert told.value("tidegate_ttft_seconds_count") == 0


def test_ten_thousand_made_up_names_make_no_series(metrics: Metrics, tmp_path: Path) -> None:
    road, counts = RoadMetrics(metrics), RequestCounts(metrics)
    route = type("Route", (), {"path": "/v1/models/{id:path}"})()

    def everything(name: str) -> None:
        entry = an_answered_entry(model=name, error_code=name, request_id=name, end_user=name, tags={name: name})
        road.observe(entry, model="any/*", gaps=None, topped_up_nano=0)
        answered(counts, method=name, path=name, status=404, error_code="not_found")
        answered(counts, path=f"/v1/models/{name}", route=route)
        answered(counts, "POST", "/v1/chat/completions", is_on_road=True, status=400, error_code=name)

    everything("the first")
    before = {(sample.name, tuple(sample.labels.items())) for sample in Scrape.read(tmp_path).samples}
    for _ in range(MANY):
        everything(made_up())
    told = Scrape.read(tmp_path)
    assert {(sample.name, tuple(sample.labels.items())) for sample in told.samples} == before
    assert told.values_of("model") == {"any/*"}
    assert told.values_of("error_code") == {"other", "not_found"}
    assert told.values_of("method") == {"other", "GET", "POST"}
    assert told.values_of("route") == {"", "/v1/models/{id:path}", "/v1/chat/completions"}
    assert told.value("tidegate_http_requests_total", status="4xx") == 2 * (MANY + 1)


def test_more_series_than_there_may_be_are_counted_together(metrics: Metrics, tmp_path: Path) -> None:
    family = families.ALERTS
    for n in range(series.MOST_SERIES + 100):
        metrics.counter(family, str(n)).add()
    told = Scrape.read(tmp_path)
    assert len(list(told.find(family.name))) == series.MOST_SERIES + 1
    assert told.value(family.name, level="other") == 100
    assert told.value(family.name) == series.MOST_SERIES + 100


@pytest.mark.parametrize("value", [0.0, 0.05, 0.050001, 60.0, 61.0, -1.0])
def test_a_bucket_holds_what_is_at_most_its_bound(metrics: Metrics, tmp_path: Path, value: float) -> None:
    metrics.histogram(families.TTFT, "m", "u").observe(value)
    for sample in Scrape.read(tmp_path).find("tidegate_ttft_seconds_bucket"):
        assert sample.value == (value <= float(sample.labels["le"])), sample


def test_labels_that_hold_anything_are_read_as_they_were(metrics: Metrics, tmp_path: Path) -> None:
    name = 'quoted "model"\\ \n 世界'
    metrics.counter(families.COST, name, "u").add()
    assert Scrape.read(tmp_path).value("tidegate_cost_usd_total", model=name) == 1


def test_a_gauge_that_is_gone_is_not_told(metrics: Metrics, tmp_path: Path) -> None:
    gauge = metrics.gauge(families.SLOTS_IN_USE, "u")
    gauge.set(3)
    assert Scrape.read(tmp_path).value("tidegate_slots_in_use", upstream="u") == 3
    gauge.clear()
    assert list(Scrape.read(tmp_path).find("tidegate_slots_in_use")) == []
    gauge.set(0)
    assert len(list(Scrape.read(tmp_path).find("tidegate_slots_in_use"))) == 1


def test_what_another_release_counted_is_left_out(metrics: Metrics, tmp_path: Path) -> None:
    metrics.histogram(Family("tidegate_ttft_seconds", "", families.TTFT.labels, "histogram", (1.0,)), "m", "u").observe(
        1
    )
    metrics.counter(Family("tidegate_cost_usd_total", "", ("model",)), "m").add()
    metrics.counter(Family("tidegate_unheard_of_total", "")).add()
    told = Scrape.read(tmp_path)
    assert (told.value("tidegate_ttft_seconds_count"), told.value("tidegate_cost_usd_total")) == (0, 0)
    assert list(told.find("tidegate_unheard_of_total")) == []


def test_families_are_named_as_prometheus_wants_them() -> None:
    names = [family.name for family in families.FAMILIES]
    assert len(names) == len(set(names))
    declared = [value for value in vars(families).values() if isinstance(value, Family)]
    assert set(declared) == set(families.FAMILIES)
    for family in families.FAMILIES:
        assert family.name.startswith("tidegate_")
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert list(family.bounds) == sorted(set(family.bounds))
        assert bool(family.bounds) == (family.kind == "histogram")


async def test_a_crowd_costs_one_reading_a_second(metrics: Metrics, tmp_path: Path) -> None:
    now = 0.0
    exposition = Exposition(tmp_path, clock=lambda: now)
    counter = metrics.counter(families.CPU)
    counter.add()
    texts = await asyncio.gather(*(exposition.text() for _ in range(50)))
    assert len({id(text) for text in texts}) == 1
    counter.add()
    assert await exposition.text() is texts[0]
    now = 1.0
    assert Scrape.of(await exposition.text()).value("tidegate_cpu_seconds_total") == 2


async def test_a_caller_that_goes_away_does_not_end_the_reading(metrics: Metrics, tmp_path: Path) -> None:
    metrics.counter(families.CPU).add()
    exposition = Exposition(tmp_path)
    gone = asyncio.create_task(exposition.text())
    other = asyncio.create_task(exposition.text())
    await asyncio.sleep(0)
    gone.cancel()
    assert Scrape.of(await other).value("tidegate_cpu_seconds_total") == 1


async def test_what_is_broken_is_told_or_left_out(metrics: Metrics, tmp_path: Path) -> None:
    metrics.counter(families.CPU).add()
    file = CellFile.create(tmp_path)
    file.cells(b"c{half", 1)
    assert Scrape.read(tmp_path).value("tidegate_cpu_seconds_total") == 1
    (tmp_path / "folded").write_text("{not json\n")
    with pytest.raises(Unavailable):
        await Exposition(tmp_path).text()


async def test_a_directory_that_cannot_be_read_is_told_and_tried_again(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    exposition = Exposition(directory)
    for _ in range(2):
        with pytest.raises(Unavailable, match="metrics cannot be read"):
            await exposition.text()
    folding.start_empty(directory)
    assert b"tidegate_requests" in await exposition.text()
    await exposition.aclose()


def test_how_late_the_loop_was_is_told_each_time(metrics: Metrics, tmp_path: Path) -> None:
    now = 0.0
    lag = LoopLag(clock=lambda: now)
    lag.observe = metrics.histogram(families.LOOP_LAG).observe
    for turn_at in (0.0, 0.25, 0.9):
        now = turn_at
        lag.turned()
    told = Scrape.read(tmp_path)
    assert told.value("tidegate_loop_lag_seconds_count") == 3
    assert told.value("tidegate_loop_lag_seconds_bucket", le="0.001") == 2
    assert told.value("tidegate_loop_lag_seconds_sum") == pytest.approx(0.4)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"tidegate_[a-z_]+", text))


def test_every_metric_is_in_the_guide_and_everything_that_is_asked_for_is_a_metric() -> None:
    names = {family.name for family in families.FAMILIES}
    assert names_in((ROOT / "docs/guide/monitoring.md").read_text()) == names
    histograms = [family for family in families.FAMILIES if family.kind == "histogram"]
    known = names | {f"{family.name}_{part}" for family in histograms for part in ("bucket", "count", "sum")}
    for asking in ("deploy/prometheus/alerts.yml", "deploy/grafana/tidegate.json"):
        assert names_in((ROOT / asking).read_text()) <= known, asking
    # What is told and never looked at is not worth its bytes.
    dashboard = names_in((ROOT / "deploy/grafana/tidegate.json").read_text())
    assert {family.name for family in families.FAMILIES if not any(family.name in name for name in dashboard)} == set()


def test_every_alert_has_its_lines_in_the_guide() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/guide/monitoring.md").read_text(), re.MULTILINE)
    assert [rule["alert"] for rule in rules] == headings
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/guide/monitoring.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/tidegate.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Traffic",
        "Errors and outcomes",
        "Latency",
        "Queue and slots",
        "Money, tokens and limits",
        "Runtime",
    ]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
