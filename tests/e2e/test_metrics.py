"""Metrics of a real server with two workers: what they sum to, who may read them, and what Prometheus makes of them."""

import asyncio
import itertools
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.behaviours import Completion
from tests.support.caller import CHAT, Caller, catalogue_of
from tests.support.client import RawClient
from tests.support.metrics import Scrape
from tests.support.prometheus import Prometheus, promtool
from tests.support.server import LOOPBACK, GatewayPlan, GatewayProcess, free_port
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.telemetry.metrics.cells import SUFFIX

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
DASHBOARD: Final = DEPLOY / "grafana" / "tidegate.json"
ALERTS: Final = DEPLOY / "prometheus" / "alerts.yml"
GUIDE: Final = Path(__file__).parents[2] / "docs" / "guide" / "monitoring.md"
PRICE: Final = {"input": "1000.00", "output": "1000.00"}
# What nothing is said of while all is well.
MAY_BE_EMPTY: Final = (
    "tidegate_degraded",
    "tidegate_limit_alerts_total",
    "tidegate_underestimated",
    "tidegate_trace_spans_total",
)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(Completion(gap_s=0.01)) as server:
        yield server


@pytest.fixture
async def served(
    upstream: ScriptedUpstream, tmp_path: Path, postgres_url: str, redis_url: str, redis_prefix: str
) -> AsyncIterator[tuple[GatewayProcess, str]]:
    """Two workers in production, and where their management is."""
    port = free_port()
    models = {"m": {"attempts": ["plain/m"], "price": PRICE}, "any/*": "plain/*", "dead": "deaf/m"}
    upstreams = {"plain": {"base_url": upstream.base_url}, "deaf": {"base_url": f"http://{LOOPBACK}:9"}}
    plan = GatewayPlan(
        catalogue=catalogue_of(
            {name: {**one, "api_key": "env:UPSTREAM_KEY"} for name, one in upstreams.items()}, models
        ),
        workers=2,
        environment="production",
        database_url=postgres_url,
        redis_url=redis_url,
        redis_prefix=redis_prefix,
        variables={"TIDEGATE_SERVER__MANAGEMENT_HOST": LOOPBACK, "TIDEGATE_SERVER__MANAGEMENT_PORT": str(port)},
    )
    async with GatewayProcess(tmp_path, plan) as gateway:
        yield gateway, f"{LOOPBACK}:{port}"


async def ask(base_url: str, path: str, key: str | None = None) -> tuple[int, bytes]:
    async with asyncio.timeout(30), RawClient(base_url) as client:
        headers = {"connection": "close"} | ({} if key is None else {"authorization": f"Bearer {key}"})
        await client.send("GET", path, headers=headers)
        head = await client.head()
        return head.status, await client.body()


async def scrape(target: str) -> Scrape:
    status, body = await ask(f"http://{target}", "/metrics")
    assert status == 200, body
    return Scrape.of(body)


def two_workers(gateway: GatewayProcess) -> set[int]:
    """The pids that have files of metrics, once they are two."""
    names = [path.name for path in (gateway.data_dir / "metrics").iterdir() if path.suffix == SUFFIX]
    return {int(name.partition("-")[0]) for name in names} if len(names) == 2 else set()


def pids_that_served(gateway: GatewayProcess) -> dict[int, int]:
    """By worker, how many chats it served."""
    served: dict[int, int] = {}
    for line in gateway.lines():
        if line.get("event") == "request" and line["path"] == CHAT:
            served[line["pid"]] = served.get(line["pid"], 0) + 1
    return served


async def served_by_both(gateway: GatewayProcess, caller: Caller, numbers: Iterator[int], alive: set[int]) -> int:
    """Asks until two workers that live have served something since. Returns how many were asked."""
    before, asked = pids_that_served(gateway), 0

    async def once() -> bool:
        nonlocal asked
        replies = await asyncio.gather(*(caller.chat(f"n-{next(numbers)}") for _ in range(10)))
        assert [reply.status for reply in replies] == [200] * 10
        asked += 10
        now = pids_that_served(gateway)
        return len({pid for pid in now if now[pid] > before.get(pid, 0) and pid in alive}) == 2

    await eventually(once, within_s=60)
    return asked


async def test_counts_of_all_workers_are_one_sum_that_a_killed_worker_stays_in(
    served: tuple[GatewayProcess, str],
) -> None:
    gateway, target = served
    caller, numbers = Caller(gateway.base_url), itertools.count()
    workers = await eventually(lambda: two_workers(gateway), within_s=30)
    asked = await served_by_both(gateway, caller, numbers, workers)

    async def counted(expected: float) -> bool:
        told = await scrape(target)
        ended = told.value("tidegate_requests_total", model="m", outcome="completed")
        assert ended <= expected
        return ended == expected == told.value("tidegate_http_requests_total", route=CHAT, status="2xx")

    await eventually(lambda: counted(asked), within_s=20, poll_s=0.3)
    told = await scrape(target)
    assert told.value("tidegate_workers") == 2
    assert told.value("tidegate_slots", upstream="plain") == 64
    assert told.value("tidegate_tokens_total", model="m", **{"class": "output"}) > asked
    assert told.value("tidegate_ttft_seconds_count", model="m") == asked

    victim = max(pids_that_served(gateway).items(), key=lambda one: one[1])[0]
    os.kill(victim, signal.SIGKILL)

    async def is_replaced_and_folded() -> bool:
        now = two_workers(gateway)
        return bool(now) and victim not in now and (await scrape(target)).value("tidegate_workers") == 2

    await eventually(is_replaced_and_folded, within_s=60, poll_s=0.3)
    told = await scrape(target)
    assert told.value("tidegate_requests_total", model="m", outcome="completed") == asked
    assert told.value("tidegate_ttft_seconds_count", model="m") == asked
    workers = await eventually(lambda: two_workers(gateway), within_s=30)
    asked += await served_by_both(gateway, caller, numbers, workers)
    await eventually(lambda: counted(asked), within_s=20, poll_s=0.3)


async def test_in_production_metrics_are_on_the_management_port_or_for_the_scope(
    served: tuple[GatewayProcess, str],
) -> None:
    gateway, target = served
    assert (await ask(f"http://{target}", "/metrics"))[0] == 200
    assert (await ask(gateway.base_url, "/metrics"))[0] == 401
    assert (await ask(gateway.base_url, "/metrics", gateway.api_key))[0] in (200, 403)
    made = await Caller(f"http://{target}").call(
        "POST", "/api/keys", json={"name": "prometheus", "scopes": ["metrics"]}
    )
    status, body = await ask(gateway.base_url, "/metrics", made.json["key"])
    assert status == 200
    assert b"tidegate_build_info" in body
    made = await Caller(f"http://{target}").call("POST", "/api/keys", json={"name": "other", "scopes": ["inference"]})
    assert (await ask(gateway.base_url, "/metrics", made.json["key"]))[0] == 403


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """Every query of the dashboard, as Grafana would send it."""
    values = {"instance": ".*", "model": ".*", "upstream": ".*", "__rate_interval": "30s"}
    queries = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    written = [re.sub(r"\$(\w+)", lambda match: values[match[1]], query) for query in queries]
    assert len(written) > 40
    return written


async def test_a_real_prometheus_answers_every_query_of_the_dashboard_and_judges_every_alert(
    served: tuple[GatewayProcess, str], upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    gateway, target = served
    caller, numbers = Caller(gateway.base_url), itertools.count()
    queries = expressions()
    missing: list[str] = []

    async def load() -> None:
        n = next(numbers)
        await caller.chat(f"streamed-{n}")
        await caller.chat(f"whole-{n}", stream=False)
        await caller.chat(f"cached-{n}", stream=False, headers={"X-Tidegate-Cache": "60s"}, temperature=0)
        await caller.chat(f"passed-on-{n}", model=f"any/{n}")
        await caller.chat(f"dead-{n}", model="dead")
        await caller.chat(f"none-{n}", model="none")
        await caller.call("GET", "/health")

    def is_told(query: str, found: list[dict[str, Any]]) -> bool:
        return bool(found) and not all(one["value"][1] == "NaN" for one in found)

    async with Prometheus(tmp_path / "prometheus", targets=[target], rules=ALERTS) as prometheus:

        async def silent() -> list[str]:
            await load()
            answers = {query: await prometheus.query(query) for query in queries}
            return [
                query
                for query, found in answers.items()
                if not is_told(query, found) and not any(name in query for name in MAY_BE_EMPTY)
            ]

        async def everything_is_told() -> bool:
            nonlocal missing
            missing = await silent()
            return not missing

        try:
            await eventually(everything_is_told, within_s=60, poll_s=0.5)
        except AssertionError:
            raise AssertionError(f"no answer to: {missing}") from None
        assert await prometheus.value("count(up == 1)") == 1
        for variable in json.loads(DASHBOARD.read_text())["templating"]["list"][1:]:
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            assert await prometheus.query(f"count by ({label}) ({metric})"), variable["name"]

        async def all_are_judged() -> bool:
            rules = await prometheus.rules()
            assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
            return len(rules) > 10 and all(rule["health"] == "ok" for rule in rules)

        await eventually(all_are_judged, within_s=30, poll_s=0.3)
        firing = await prometheus.query('ALERTS{alertstate="firing"}')
        assert {one["metric"]["alertname"] for one in firing} <= {"TidegateUnderestimated"}


def test_alerts_fire_where_they_should_and_are_silent_else(tmp_path: Path) -> None:
    checked = promtool("check", "rules", str(ALERTS))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = tmp_path / "tests.yml"
    tests.write_text((Path(__file__).parent / "alert_rules.yml").read_text().replace("ALERTS]", f"{ALERTS}]"))
    done = promtool("test", "rules", str(tests))
    assert done.returncode == 0, done.stdout + done.stderr
