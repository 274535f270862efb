"""What a budget cuts or refuses on the road: an answer that outgrows it, and a request larger than any limit."""

import uuid
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from pydantic import SecretStr

from tests.support import services
from tests.support.caller import WITHIN_S, Caller, Reply, catalogue_of
from tests.support.credentials import keyrings
from tests.support.road import Road, open_road
from tests.support.services import Service
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.accounts.schemas import NewKey
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.models import LimitRow
from tidegate.limits.values import MOST, MOST_USD, Overrun, exact_amount
from tidegate.settings.groups import RedisSettings

WORDS = 60
LONG = [{"role": "user", "content": " ".join(["word"] * WORDS)}]
HUGE = [10**15, 2**63, 10**30, 10**400]


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def road(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    upstreams = {
        # It streams whether it is asked to or not.
        "echo": {"provider": "echo"},
        "plain": {"base_url": upstream.base_url, "breaker": "off", "count": "deltas"},
    }
    # A thousandth of a dollar a token of output; ten are reserved at a time.
    priced = {"price": {"input": "0", "output": "1000"}, "reserve_output_tokens": 10}
    models = {
        "echo": {"attempts": ["echo/echo", "plain/m"], **priced},
        "m": {"attempts": ["plain/m"], **priced},
    }
    async with open_road(tmp_path_factory.mktemp("road"), catalogue_of(upstreams, models)) as opened:
        yield opened
        await opened.at_rest()


@pytest.fixture(scope="module")
async def shared_road(
    upstream: ScriptedUpstream, redis_service: Service, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Road]:
    """One whose limits are in Redis, where numbers have a size."""
    url, prefix = services.redis_url(redis_service), f"cut-{uuid.uuid4().hex[:12]}"
    redis = RedisSettings(url=SecretStr(url), key_prefix=prefix)
    plain = {"base_url": upstream.base_url, "breaker": "off", "count": "deltas"}
    models = {"m": {"attempts": ["plain/m"], "price": {"input": "0", "output": "1000"}, "reserve_output_tokens": 10}}
    folder = tmp_path_factory.mktemp("shared")
    try:
        async with open_road(folder, catalogue_of({"plain": plain}, models), redis=redis) as opened:
            yield opened
            await opened.at_rest()
    finally:
        services.delete_keys(url, prefix)


@pytest.fixture(params=["memory", "redis"])
def either_road(request: pytest.FixtureRequest) -> Road:
    opened: Road = request.getfixturevalue("road" if request.param == "memory" else "shared_road")
    return opened


async def with_key(road: Road, *limits: MeteredAmount, budget: tuple[str, Overrun] | None = None) -> Caller:
    """A caller with a key of its own; `budget` is in USD, and what happens to an answer that outgrows it."""
    created = await ApiKeys(road.database, keyrings().peppers).create(NewKey(name="limited", limits=limits))
    if budget is not None:
        usd, on_overrun = budget
        async with road.database.transaction() as session:
            session.add(
                LimitRow(
                    workspace_id=DEFAULT_WORKSPACE_ID,
                    scope="key",
                    subject=str(created.id),
                    meter="cost",
                    window="total",
                    amount=exact_amount("cost", usd),
                    action="refuse",
                    on_overrun=on_overrun,
                )
            )
    return Caller(road.base_url, created.secret)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "collected"])
async def test_an_answer_that_outgrows_its_budget_is_cut_and_goes_to_no_second_upstream(
    streamed: bool, road: Road, upstream: ScriptedUpstream
) -> None:
    label, asked = f"cut-{streamed}", len(upstream.requests)
    # Room for the ten tokens that are reserved at first, not for ten more.
    caller = await with_key(road, budget=("0.015", "cut"))
    reply = await caller.chat(label, model="echo", stream=streamed, messages=LONG)
    assert reply.error["code"] == "insufficient_quota"
    if streamed:
        assert (reply.status, len(reply.errors), reply.is_done) == (200, 1, False)
        assert 8 <= len(reply.text.split()) < WORDS
    else:
        assert reply.status == 429
        assert reply.head.headers["x-should-retry"] == "false"
        assert "choices" not in reply.json
    entry = await road.caller.entry(label)
    assert (entry["outcome"], entry["error_code"], entry["status"]) == (
        "interrupted",
        "insufficient_quota",
        reply.status,
    )
    (attempt,) = entry["attempts"]
    assert (attempt["upstream"], attempt["outcome"]) == ("echo", "interrupted")
    assert 8 <= entry["output_tokens"] < WORDS
    assert Decimal(entry["cost"]) == Decimal(entry["output_tokens"]) / 1000
    assert len(upstream.requests) == asked


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "collected"])
async def test_an_answer_that_may_finish_is_whole_though_its_budget_is_spent(streamed: bool, road: Road) -> None:
    label = f"finishes-{streamed}"
    caller = await with_key(road, budget=("0.015", "finish"))
    reply = await caller.chat(label, model="echo", stream=streamed, messages=LONG)
    assert reply.status == 200
    entry = await road.caller.entry(label)
    assert (entry["outcome"], entry["upstream"], entry["output_tokens"]) == ("completed", "echo", WORDS)
    assert (await caller.chat("spent", model="echo", messages=LONG)).error["code"] == "insufficient_quota"


async def judged(caller: Caller, *, max_tokens: int) -> Reply:
    """The answer by the limits themselves: a busy Redis may be late, and whoever it does not judge is to come again."""

    async def asked() -> list[Reply]:
        reply = await caller.chat("judged", max_tokens=max_tokens)
        return [] if reply.status == 503 else [reply]

    [reply] = await eventually(asked, within_s=WITHIN_S)
    return reply


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("asked", HUGE, ids=lambda asked: f"{len(str(asked))}-digits")
async def test_a_huge_request_passes_untouched_where_nothing_limits_it(
    asked: int, streamed: bool, either_road: Road, upstream: ScriptedUpstream
) -> None:
    label = f"huge-{len(str(asked))}-{streamed}"
    reply = await (await with_key(either_road)).chat(label, stream=streamed, max_tokens=asked)
    assert reply.status == 200
    assert not reply.errors
    assert f'"max_tokens":{asked}'.encode() in upstream.last.raw_body.replace(b" ", b"")
    assert (await either_road.caller.entry(label))["outcome"] == "completed"


@pytest.mark.parametrize("asked", HUGE, ids=lambda asked: f"{len(str(asked))}-digits")
async def test_a_huge_request_is_refused_by_the_largest_budget(
    asked: int, either_road: Road, upstream: ScriptedUpstream
) -> None:
    seen = len(upstream.requests)
    caller = await with_key(either_road, budget=(str(MOST_USD), "finish"))
    reply = await judged(caller, max_tokens=asked)
    assert (reply.status, reply.error["code"]) == (429, "insufficient_quota")
    assert len(upstream.requests) == seen
    # It reserved nothing.
    assert (await judged(caller, max_tokens=5)).status == 200


@pytest.mark.parametrize("asked", [2**63, 10**30])
async def test_a_huge_request_is_refused_by_the_largest_rate_and_is_not_to_be_tried_again(
    asked: int, either_road: Road
) -> None:
    caller = await with_key(either_road, MeteredAmount(meter="tokens", window="minute", amount=MOST))
    reply = await caller.chat("huge", max_tokens=asked, stream=False)
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert reply.head.headers["x-should-retry"] == "false"
    assert "retry-after" not in reply.head.headers
    assert (await caller.chat("small", max_tokens=5)).status == 200
