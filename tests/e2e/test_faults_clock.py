"""The clock of the gateway's machine stepped under load, an hour on and two hours back, as a wrong NTP server does it.

libfaketime moves the wall clock of the gateway's processes alone; the monotonic clock goes on, as in a real step. What
is to hold (docs/operations/faults.md): no request fails, no duration is negative or an hour long, no entry ends before
it began, and what has an expiry is judged by the clock as it stands.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.behaviours import Completion
from tests.support.caller import Caller, catalogue_of
from tests.support.debian import debian_files
from tests.support.limited import LimitedGateway, a_meter
from tests.support.mixed_load import MixedLoad
from tests.support.server import GatewayPlan, answers
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

# The library turns a sleep until a moment of the monotonic clock, which is Python's, into an error (EINVAL).
SLEEP_BY_SELECT = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
PRICE = {"input": "1.00", "output": "2.00"}
LIBRARY = "usr/lib/*/faketime/libfaketimeMT.so.1"
# Of the load's requests, by the upstream's own pace and a machine however busy.
LONGEST_MS = 30_000


async def test_a_clock_that_is_stepped_breaks_no_request_and_no_entry(
    tmp_path: Path, upstream: ScriptedUpstream, postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    upstream.default = Completion(deltas=["word "] * 10, gap_s=0.1)
    upstream.by_model["short"] = Completion()
    (library,) = debian_files("libfaketime").glob(LIBRARY)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    (tmp_path / "sitecustomize.py").write_text(SLEEP_BY_SELECT)
    plain = {"base_url": upstream.base_url, "count": "deltas"}
    plan = GatewayPlan(
        environment="production",
        catalogue=catalogue_of(
            {"plain": plain}, {name: {"attempts": [f"plain/{name}"], "price": PRICE} for name in ("m", "short")}
        ),
        workers=2,
        database_url=postgres_url,
        redis_url=redis_url,
        redis_prefix=redis_prefix,
        cold=True,
        variables={
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
        },
    )
    async with LimitedGateway.running(tmp_path, plan) as gateway:
        metered = (a_meter("requests", 1_000_000, "minute"), a_meter("cost", "1000", "day"), a_meter("concurrency", 50))
        caller = Caller(gateway.process.base_url, (await gateway.key(*metered)).secret)
        token = await _log_in(gateway)
        async with MixedLoad([caller], streams=6, short=2, short_model="short", pause_s=0.1) as load:
            await load.goes_on(6)
            await _is_judged(gateway, token, "taken")
            clock.write_text("+3600")
            await _until_the_clock_shows(gateway, 3600)
            await load.goes_on(6)
            # Its quarter of an hour is over, by the clock as it stands.
            await _is_judged(gateway, token, "token_expired")
            clock.write_text("-3600")
            await _until_the_clock_shows(gateway, -3600)
            await load.goes_on(6)
            assert await answers(gateway.process.base_url, "/health/ready") == 200
            clock.write_text("+0")
            await _until_the_clock_shows(gateway, 0)
            await load.goes_on(6)
        assert load.not_whole() == []
        labels = {one.label for one in load.asked}
        entries = await _entries(caller, labels)
    assert {entry["outcome"] for entry in entries} == {"completed"}
    for entry in entries:
        for row in (entry, *entry["attempts"]):
            assert row["ended_at"] >= row["started_at"], row
        assert 0 <= entry["duration_ms"] <= LONGEST_MS, entry
        assert 0 <= entry["ttft_ms"] <= entry["duration_ms"], entry
        assert entry["queue_ms"] is None or 0 <= entry["queue_ms"] <= LONGEST_MS, entry
    assert [line for line in gateway.process.lines() if line["level"] in ("error", "critical")] == []


async def _log_in(gateway: LimitedGateway) -> str:
    anybody = Caller(gateway.process.base_url)
    body = {"email": gateway.process.admin_email, "password": gateway.process.admin_password}
    reply = await anybody.call("POST", "/auth/login", headers={"authorization": ""}, json=body)
    assert reply.status == 200, reply.body
    token: str = reply.json["access_token"]
    return token


async def _is_judged(gateway: LimitedGateway, token: str, expected: str) -> None:
    """Waits for what becomes of an access token; `unavailable` says that the database took too long just now."""

    async def judged() -> str:
        reply = await Caller(gateway.process.base_url, token).call("GET", "/auth/me")
        code = "taken" if reply.status == 200 else str(reply.error["code"])
        return "" if code == "unavailable" else code

    assert await eventually(judged, within_s=30) == expected


async def _until_the_clock_shows(gateway: LimitedGateway, offset_s: float) -> None:
    """Waits until every worker that answers has it: each reads the step within a second."""

    async def all_show() -> bool:
        shown = [await _offset_s(gateway) for _ in range(8)]
        return all(abs(one - offset_s) < 60 for one in shown)

    await eventually(all_show, within_s=30)


async def _offset_s(gateway: LimitedGateway) -> float:
    """By a worker's own last line."""
    await Caller(gateway.process.base_url).call("GET", "/v1/models")
    line = next(line for line in reversed(gateway.process.lines()) if line["event"] == "request")
    seconds = time.mktime(time.strptime(line["ts"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    return seconds - time.time()


async def _entries(caller: Caller, labels: set[str]) -> list[dict[str, Any]]:
    async def all_there() -> list[dict[str, Any]]:
        found, path = [], "/api/requests?limit=200"
        while path:
            page = (await caller.call("GET", path)).json
            found += [entry for entry in page["data"] if entry["request_id"] in labels]
            path = f"/api/requests?limit=200&after={page['next']}" if page["next"] else ""
        assert len(found) == len({entry["request_id"] for entry in found})
        return found if {entry["request_id"] for entry in found} == labels else []

    return await eventually(all_there, within_s=30, poll_s=0.5)


async def test_the_library_moves_the_clock_and_not_the_monotonic_one(tmp_path: Path) -> None:
    (library,) = debian_files("libfaketime").glob(LIBRARY)
    clock = tmp_path / "clock"
    clock.write_text("+3600")
    environ = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    program = "import time; print(time.time(), time.monotonic())"
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env={"PATH": "/usr/bin:/bin", **environ}, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await running.communicate()
    wall, monotonic = map(float, printed.split())
    assert 3500 < wall - time.time() < 3700
    assert abs(monotonic - time.monotonic()) < 60
