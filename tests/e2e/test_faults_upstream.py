"""An upstream half dead under load: it takes connections and does not answer, answers and stalls, fails, cuts off.

What is to hold (docs/operations/faults.md): what has had no content goes on to the next attempt, and is whole; what had
some ends with one typed error event; soon the breaker spares everyone the waiting; once it is well it is used again.
"""

import sys
import time
from pathlib import Path

from tests.support.behaviours import Answer, Behaviour, Completion, refusal, silent, stalled
from tests.support.caller import Caller, catalogue_of
from tests.support.mixed_load import MixedLoad
from tests.support.server import GatewayPlan, GatewayProcess, answers
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

HEADERS_S = 0.5
WELL = Completion(deltas=["word "] * 5, gap_s=0.02)
# What each does to the requests that meet it: whether the next attempt can save them.
HALF_DEAD: dict[str, tuple[Behaviour, bool]] = {
    "takes connections and never answers": (silent(), True),
    "answers 500": (refusal(500), True),
    "answers 429": (refusal(429), True),
    "answers HTML": (Answer(status=200, body=b"<html>", content_type="text/html"), True),
    "ends before the first event": (Completion(deltas=[], role_chunk=False, ending="fin"), True),
    "stalls after the first token": (stalled(1), False),
    "is cut off after some tokens": (Completion(ending="rst"), False),
}


async def test_an_upstream_that_is_half_dead_costs_callers_no_more_than_it_must(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.default = WELL
    breaker = {"failures": 5, "window_s": 10, "open_s": 1}
    timeouts = {"headers_s": HEADERS_S, "first_token_s": HEADERS_S, "idle_s": HEADERS_S, "total_s": 5}
    table = {"base_url": upstream.base_url, "count": "deltas", "breaker": breaker, "timeouts": timeouts}
    catalogue = catalogue_of({"sick": table, "well": table}, {"m": ["sick/sick", "well/well"]})
    async with (
        GatewayProcess(tmp_path, GatewayPlan(catalogue=catalogue)) as process,
        MixedLoad([Caller(process.base_url)], streams=6, short=0, pause_s=0.05) as load,
    ):
        await load.goes_on(10)
        for name, (behaviour, is_saved) in HALF_DEAD.items():
            began = time.monotonic()
            upstream.by_model["sick"] = behaviour
            await load.goes_on(30)
            assert await answers(process.base_url, "/health/ready") == 200
            upstream.by_model["sick"] = WELL
            healed = time.monotonic()
            await _is_used_again(upstream)
            ill = [one for one in load.since(began) if one.at < healed]
            cut = [one for one in ill if not one.is_whole]
            slowest_s = max(one.took_s for one in ill)
            sys.stdout.write(f"{name}: {len(ill)} asked, {len(cut)} not whole, slowest {slowest_s:.2f} s\n")
            if is_saved:
                assert cut == [], name
            else:
                # A probe of the breaker's each second, and who had begun before it opened.
                assert 0 < len(cut) < 25, name
                assert {one.status for one in ill} == {200}
                assert {one.code for one in cut} <= {"upstream_error", "upstream_timeout"}
        well_since = time.monotonic()
        await load.goes_on(10)
    assert [one for one in load.asked if one.at >= well_since and not one.is_whole] == []


async def _is_used_again(upstream: ScriptedUpstream) -> None:
    """The breaker lets one through each second, and then all."""

    def sick_ones() -> int:
        return sum(request.body["model"] == "sick" for request in upstream.requests)

    before = sick_ones()
    await eventually(lambda: sick_ones() > before + 15, within_s=30)
