"""A soak of seconds, so that `make soak` runs when it is wanted: nothing is answered wrongly, and nothing is left.

Workers that have just started still fill their pools and caches: of their memory it can only say that it does not run
away. What an hour finds is in `docs/operations/soak.md`.
"""

import pytest
from benchmarks.soak import Plan, Stores, soak
from benchmarks.soak_samples import RESIDENT, Bounds

SECONDS = 20


@pytest.mark.timeout(600)
async def test_a_short_soak_finds_no_fault_and_nothing_that_grows(
    postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    # The slack is for a machine that other tests keep busy: streams bunch up, and with them all that belongs to each.
    bounds = Bounds(memory=0.25, counts=0.1, slack=20)
    plan = Plan(minutes=SECONDS / 60, streams=60, sample_every_s=1, reload_every_s=4, bounds=bounds)
    soaked = await soak(plan, Stores(postgres_url, redis_url, redis_prefix))
    assert soaked.is_good, soaked.told()
    assert soaked.reloads >= 3
    assert soaked.asked["stream: whole"] > plan.streams
    assert set(soaked.asked) >= {
        "stream: hung up",
        "unknown key: 401",
        "rated: 429",
        "cached: 200",
        "unawaited: hung up",
    }
    assert {grown.whose for grown in soaked.grown if grown.what == RESIDENT} == {"worker 1", "worker 2"}
