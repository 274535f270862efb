"""What /metrics tells of the real application, and to whom."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.support.behaviours import Completion
from tests.support.caller import CHAT, catalogue_of
from tests.support.keys_api import KeysApi
from tests.support.metrics import Scrape
from tests.support.road import Road, open_road
from tests.support.server import LOOPBACK
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate import __version__
from tidegate.ledger.entry import Entry
from tidegate.telemetry.metrics.folding import DIRECTORY, fold
from tidegate.telemetry.metrics.series import MOST_SERIES

MANY = 60


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


def of(upstream: ScriptedUpstream, **more: object) -> str:
    plain = {"base_url": upstream.base_url, **more}
    return catalogue_of({"plain": plain, "deaf": {**plain, "base_url": f"http://{LOOPBACK}:9"}}, MODELS)


MODELS = {"m": "plain/m", "any/*": "plain/*", "unreachable": "deaf/m", "second": {"attempts": ["deaf/m", "plain/m"]}}


@pytest.fixture
async def road(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Road]:
    async with open_road(tmp_path, of(upstream)) as opened:
        yield opened


async def scrape(road: Road) -> Scrape:
    """Asked when what was asked before is in it: an answer is kept for a second."""
    road.state["exposition"]._read_at = float("-inf")
    reply = await road.caller.call("GET", "/metrics")
    assert (reply.status, reply.head.headers["cache-control"]) == (200, "no-store")
    assert reply.head.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape.of(reply.body)


async def test_streams_and_whole_answers_are_counted_once_with_what_they_came_to(
    road: Road, upstream: ScriptedUpstream
) -> None:
    deltas = Completion(deltas=("one", "two", "three"), pauses={1: 0.06, 2: 0.06})
    upstream.enqueue(deltas, deltas)
    assert (await road.caller.chat("a")).is_done
    assert (await road.caller.chat("b", stream=False)).status == 200
    await road.at_rest()
    entries = [await road.caller.entry(label) for label in ("a", "b")]
    told = await scrape(road)
    by = {"model": "m", "upstream": "plain"}
    assert told.value("tidegate_requests_total", **by, outcome="completed", error_code="") == 2
    assert told.value("tidegate_requests_total") == 2
    assert told.value("tidegate_attempts_total", upstream="plain", outcome="completed") == 2
    for one in ("input", "output"):
        expected = sum(entry[f"{one}_tokens"] for entry in entries)
        assert told.value("tidegate_tokens_total", **by, **{"class": one}) == expected > 0
    assert told.value("tidegate_ttft_seconds_count", **by) == 1
    assert 2 <= told.value("tidegate_token_gap_seconds_count", **by) <= 4
    assert told.value("tidegate_token_gap_seconds_sum", **by) > 0.1
    assert told.value("tidegate_request_duration_seconds_count", **by) == 2
    assert told.value("tidegate_queue_wait_seconds_count", **by) == 2
    assert told.value("tidegate_http_requests_total", route=CHAT, method="POST", status="2xx") == 2
    assert told.value("tidegate_http_request_duration_seconds_count", route=CHAT) == 0


async def test_failures_failovers_and_refusals_are_told_apart(road: Road) -> None:
    assert (await road.caller.chat("a", model="unreachable")).status == 502
    assert (await road.caller.chat("b", model="second")).status == 200
    assert (await road.caller.chat("c", model="no-such-model")).status == 404
    assert (await road.caller.call("GET", "/api/keys", headers={"authorization": "Bearer tg_x"})).status == 401
    await road.at_rest()
    told = await scrape(road)
    failed = {"outcome": "upstream_failed", "error_code": "upstream_error"}
    assert told.value("tidegate_requests_total", model="unreachable", **failed) == 1
    assert told.value("tidegate_requests_total", model="second", upstream="plain", outcome="completed") == 1
    assert told.value("tidegate_attempts_total", upstream="deaf", outcome="upstream_failed") == 2
    assert told.value("tidegate_http_errors_total", route=CHAT, error_code="model_not_found") == 1
    assert told.value("tidegate_http_errors_total", route="/api/keys", error_code="invalid_api_key") == 1
    assert told.value("tidegate_http_requests_total", route="/api/keys", method="GET", status="4xx") == 1


async def test_what_callers_make_up_makes_no_series(road: Road) -> None:
    async def made_up(n: int) -> None:
        await road.caller.chat(f"label-{n}", model=f"any/made-up-{n}", headers={"X-Tidegate-Tags": f"t{n}=v{n}"})
        await road.caller.chat(f"refused-{n}", model=f"made-up-{n}", headers={"X-Tidegate-End-User": f"made-up-{n}"})
        await road.caller.call("GET", f"/made-up-{n}")
        await road.caller.call("GET", f"/api/requests/made-up-{n}")
        await road.caller.call(f"MADE{n}", "/health")
        await road.caller.call("PUT", f"/v1/models/made-up-{n}")

    await made_up(0)
    await scrape(road)
    before = {(sample.name, *sample.labels.items()) for sample in (await scrape(road)).samples}
    for start in range(1, MANY, 10):
        await asyncio.gather(*(made_up(n) for n in range(start, start + 10)))
    await road.at_rest()
    told = await scrape(road)
    after = {(sample.name, *sample.labels.items()) for sample in told.samples}
    assert after == before
    assert told.values_of("model") == {"any/*"}
    assert "made-up" not in str(told.samples)
    assert told.value("tidegate_requests_total", model="any/*") > MANY
    assert len(before) < MOST_SERIES


async def test_what_is_held_now_is_told_until_it_is_given_back(road: Road, upstream: ScriptedUpstream) -> None:
    async def held() -> tuple[float, float]:
        told = await scrape(road)
        return told.value("tidegate_slots_in_use", upstream="plain"), told.value("tidegate_running_requests")

    async def is_held(expected: tuple[float, float]) -> bool:
        return await held() == expected

    gate = Gate()
    upstream.enqueue(Completion(pauses={1: gate}))
    async with road.client() as client:
        await road.caller.ask(client, "held")
        await eventually(lambda: is_held((1, 1)), poll_s=0.1)
        gate.open()
        await client.head()
        await client.body()
    await eventually(lambda: is_held((0, 0)), poll_s=0.1)
    told = await scrape(road)
    assert told.value("tidegate_workers") == 1
    assert told.value("tidegate_slots", upstream="plain") == 64
    assert told.value("tidegate_breaker_open", upstream="plain") == 0
    assert told.value("tidegate_pool_connections_limit", pool="database") == 10
    assert told.value("tidegate_resident_memory_bytes") > 10_000_000
    assert told.value("tidegate_open_descriptors") > 5
    assert 0 < told.value("tidegate_cpu_seconds_total") < 10_000
    assert told.value("tidegate_build_info", version=__version__) == 1
    assert told.value("tidegate_catalogue_info", version=road.gateway.serving.catalogue.version) == 1


async def test_an_upstream_that_a_reload_took_away_has_no_gauge(road: Road, upstream: ScriptedUpstream) -> None:
    assert (await scrape(road)).values_of("upstream") == {"plain", "deaf"}
    renamed = catalogue_of({"renamed": {"base_url": upstream.base_url}}, {"m": "renamed/m"})
    version = await road.reload(renamed)

    async def is_renamed() -> bool:
        told = await scrape(road)
        return told.values_of("upstream") == {"renamed"} and told.value("tidegate_catalogue_info", version=version) == 1

    await eventually(is_renamed, poll_s=0.1)


async def test_the_lag_of_the_ledger_grows_while_its_store_is_away(road: Road) -> None:
    drain = road.ledger._drain

    class Away:
        async def insert(self, entries: Sequence[Entry]) -> None:
            raise OSError("away")

    store, drain._store = drain._store, Away()
    await road.caller.chat("late")

    async def lags() -> bool:
        told = await scrape(road)
        return told.value("tidegate_ledger_lag_seconds") > 1 and told.value("tidegate_ledger_behind") == 1

    async def is_over() -> bool:
        told = await scrape(road)
        return told.value("tidegate_ledger_lag_seconds") < 1 and told.value("tidegate_ledger_behind") == 0

    await eventually(lags, poll_s=0.1)
    drain._store = store
    await eventually(is_over, within_s=20, poll_s=0.1)
    await road.caller.entry("late")


async def test_the_numbers_of_a_process_that_ended_stay_in_the_sum(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with open_road(tmp_path, of(upstream)) as first:
        await first.caller.chat("a")
    async with open_road(tmp_path, of(upstream)) as second:
        await second.caller.chat("b")
        told = await scrape(second)
        assert told.value("tidegate_requests_total") == 2
        assert told.value("tidegate_workers") == 1
        fold(second.settings.data_dir / DIRECTORY)
        told = await scrape(second)
        assert (told.value("tidegate_requests_total"), told.value("tidegate_workers")) == (2, 1)


async def test_outside_of_production_loopback_reads_metrics_and_others_need_the_scope(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with KeysApi.open(sqlite_url, tmp_path) as api:
        reader, other = [(await api.make(scopes=[scope]))["key"] for scope in ("metrics", "inference")]
        for peer in ("127.0.0.1", "::1", "127.8.8.8"):
            api.peer = peer
            assert (await api.client.get("/metrics")).status_code == 200, peer
        for far in ("192.0.2.1", "2001:db8::1", None):
            api.peer = far
            assert (await api.client.get("/metrics")).status_code == 401, far
            assert (await api.call("GET", by=reader, at="/metrics")).status_code == 200
            assert (await api.call("GET", by=other, at="/metrics")).status_code == 403
