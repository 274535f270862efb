"""From limits to a step's answer: windows, seeding, what a refused caller is told, and what is declared of it later."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.unit.limits import a_limit
from tests.unit.scripted_store import START_S, TAG, ScriptedStore, a_desk, a_seat, seeding, slots
from tests.unit.scripted_store import budget as money
from tests.unit.scripted_store import rate as a_rate
from tests.unit.virtual_time import in_virtual_time
from tidegate.admission.checks import Reserve
from tidegate.admission.desk import Desk
from tidegate.admission.steps import Steps, refusal_of
from tidegate.admission.store import UNDO, Asked, Check, Reply, Seeding, Spent
from tidegate.errors import InsufficientQuota, RateLimitExceeded, TidegateError, Unavailable
from tidegate.limits.values import LimitScope, Matched, Meter

NANO = 10**9
DAY_S = 86_400
SPENT = Spent(tokens=10, cost=3)


class Ledger:
    """Gives the sums that it was given, by counter; others cannot be had."""

    def __init__(self, desk: Desk, **sums: int) -> None:
        self.desk = desk
        self.sums = sums
        self.asked: list[str] = []

    async def seed(self, tag: str, matched: Matched, check: Check) -> bool:
        self.asked.append(check.counter)
        if check.counter not in self.sums:
            return False
        used = self.sums[check.counter]
        return await self.desk.seed(tag, Seeding(check.counter, check.starts, check.ends, check.amount, used)) or True


def the_steps(shared: ScriptedStore, *, clock_s: float = START_S, **sums: int) -> tuple[Steps, Ledger]:
    desk = a_desk(shared)
    ledger = Ledger(desk, **sums)
    return Steps(desk, ledger, clock=lambda: clock_s), ledger


def budget(name: str, usd: int, window: str = "total") -> Matched:
    return Matched(a_limit(meter="cost", window=window, amount=usd * NANO), name)


def requests(name: str, amount: int, window: str = "minute") -> Matched:
    return Matched(a_limit(window=window, amount=amount), name)


def cost(usd: float) -> Reserve:
    return Reserve(tokens=10, cost=int(usd * NANO))


@in_virtual_time
async def test_a_budget_that_the_store_does_not_know_is_summed_once() -> None:
    steps, ledger = the_steps(ScriptedStore(), spent=9 * NANO)
    limits = [budget("spent", 10)]
    assert (await steps.take(TAG, "e1", limits, cost(1))).reply.used == (10 * NANO,)
    with pytest.raises(InsufficientQuota):
        await steps.take(TAG, "e2", limits, cost(0.1))
    assert ledger.asked == ["spent"]


@in_virtual_time
async def test_several_that_cannot_be_summed_are_judged_without_the_store_and_the_rest_by_it() -> None:
    shared = ScriptedStore()
    steps, _ = the_steps(shared, known=0)
    steps.desk.workers = 1
    limits = [budget("away", 10), budget("known", 10), requests("rate", 2), budget("gone", 10)]
    for name in ("away", "gone"):
        await shared.memory.seed(TAG, seeding(10 * NANO, 0, counter=name))
    await steps.take(TAG, "before", limits, cost(1))
    shared.forgets()
    assert (await steps.take(TAG, "e1", limits, cost(1))).reply.said == "taken"
    assert (await steps.take(TAG, "e2", limits, cost(1))).reply.said == "taken"
    with pytest.raises(RateLimitExceeded, match="2 requests a minute"):
        await steps.take(TAG, "e3", limits, cost(1))
    with pytest.raises(InsufficientQuota):
        await steps.take(TAG, "e4", limits[:1], cost(9))


@in_virtual_time
async def test_windows_are_those_of_the_stores_clock() -> None:
    shared = ScriptedStore()
    midnight_s = START_S - START_S % DAY_S + DAY_S
    shared.now_ms = (midnight_s + 30) * 1000
    steps, _ = the_steps(shared, clock_s=midnight_s - 30, day=0)
    taken = await steps.take(TAG, "e1", [requests("day", 5, "day")], Reserve())
    assert taken.checks[0].starts == midnight_s
    # From then on it knows how far the store is ahead.
    asked = shared.steps.count("take")
    await steps.take(TAG, "e2", [requests("day", 5, "day")], Reserve())
    assert shared.steps.count("take") == asked + 1


@in_virtual_time
async def test_a_store_that_never_agrees_is_no_endless_road() -> None:
    shared = ScriptedStore()
    steps, ledger = the_steps(shared, day=0)

    async def forgets(tag: str, matched: Matched, check: Check) -> bool:
        return True

    ledger.seed = forgets  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await steps.take(TAG, "e1", [requests("day", 5, "day")], Reserve())
    assert steps.desk.holdings == {}


@in_virtual_time
async def test_only_so_many_limits_that_alert_are_remembered() -> None:
    steps, _ = the_steps(ScriptedStore())
    watching = a_limit(action="alert")
    for n in range(10_100):
        await steps.take(TAG, "e", [Matched(watching, f"c{n}")], Reserve())
        steps.desk.release(TAG, "e", UNDO)
    assert steps.limit_of("c10099") is watching
    assert steps.limit_of("c0") is None


def refused(limits: Sequence[Matched], reply: Reply, *, take: int = 1) -> TidegateError:
    checks = [Check(one.counter, "sliding", one.limit.meter, one.limit.amount, take) for one in limits]
    return refusal_of(limits, checks, reply)


def test_a_refusal_says_which_limit_and_when_to_come_again() -> None:
    limits = [requests("a", 60), requests("b", 2)]
    error = refused(limits, Reply(said="refused", now_ms=0, at=1, retry_ms=1_500, used=(3, 2)))
    assert isinstance(error, RateLimitExceeded)
    assert error.message == "The limit 'key-requests-minute' of 2 requests a minute is reached. Try again in 2 s."
    assert (error.headers["Retry-After"], error.headers["retry-after-ms"]) == ("2", "1500")
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in error.headers


def test_who_asks_for_more_than_a_limit_ever_allows_is_not_told_to_come_again() -> None:
    limits = [Matched(a_limit(meter="tokens", amount=100), "a")]
    error = refused(limits, Reply(said="refused", now_ms=0, at=0, retry_ms=1_500, used=(0,)), take=101)
    assert "101 tokens" in error.message
    assert not {"Retry-After", "retry-after-ms"} & set(error.headers)
    assert error.headers["x-should-retry"] == "false"


def test_a_budget_that_is_spent_names_no_time() -> None:
    error = refused([budget("a", 10)], Reply(said="refused", now_ms=0, at=0, retry_ms=-1, used=(0,)))
    assert isinstance(error, InsufficientQuota)
    assert "10 USD in all" in error.message
    assert error.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize("meter", ["requests", "tokens"])
def test_what_no_time_gives_back_is_not_to_be_tried_again(meter: Meter) -> None:
    limits = [Matched(a_limit(meter=meter, window="total", amount=10), "a")]
    error = refused(limits, Reply(said="refused", now_ms=0, at=0, retry_ms=-1, used=(10,)))
    assert isinstance(error, RateLimitExceeded)
    assert error.headers["x-should-retry"] == "false"
    assert "Retry-After" not in error.headers


@pytest.mark.parametrize("scope", ["key", "user", "workspace", "deployment", "end_user", "tag", "upstream"])
def test_what_a_budget_holds_is_told_to_those_whose_own_it_is(scope: LimitScope) -> None:
    limit = a_limit(scope=scope, meter="cost", window="month", amount=1234 * NANO)
    error = refused([Matched(limit, "a")], Reply(said="refused", now_ms=0, at=0, retry_ms=1_500, used=(0,)))
    assert limit.label in error.message
    assert ("of 1234 USD a month" in error.message) is (scope in ("key", "user"))
    told = [error.message, *error.headers.values()]
    assert scope in ("key", "user") or not any("1234" in text for text in told), told


@in_virtual_time
async def test_who_is_judged_without_the_store_is_told_no_figures() -> None:
    steps, _ = the_steps(ScriptedStore())
    limits = [requests("rate", 2)]
    steps.desk.leave("a test")
    assert (await steps.take(TAG, "e1", limits, Reserve())).reply.used == ()
    with pytest.raises(RateLimitExceeded) as caught:
        await steps.take(TAG, "e2", limits, Reserve())
    assert [name for name in caught.value.headers if "ratelimit" in name.lower()] == []


async def test_budgets_are_summed_side_by_side() -> None:
    shared = ScriptedStore()
    steps, ledger = the_steps(shared, a=0, b=0)
    both, seed = asyncio.Barrier(2), ledger.seed

    async def beside(tag: str, matched: Matched, check: Check) -> bool:
        async with asyncio.timeout(10):
            await both.wait()
        return await seed(tag, matched, check)

    ledger.seed = beside  # type: ignore[method-assign]
    assert (await steps.take(TAG, "e1", [budget("a", 1), budget("b", 1)], cost(0.1))).reply.said == "taken"


@in_virtual_time
async def test_what_turns_out_to_be_unknown_later_is_judged_apart_with_the_rest() -> None:
    shared = ScriptedStore()
    steps, ledger = the_steps(shared)
    limits = [budget("away", 10), budget("later", 10)]
    for name in ("away", "later"):
        await shared.memory.seed(TAG, seeding(10 * NANO, 0, counter=name))
    await steps.take(TAG, "before", limits, cost(1))
    shared.forgets()

    async def says_so_too_soon(tag: str, matched: Matched, check: Check) -> bool:
        ledger.asked.append(check.counter)
        return check.counter == "later" and ledger.asked.count("later") == 1

    ledger.seed = says_so_too_soon  # type: ignore[method-assign]
    assert (await steps.take(TAG, "e1", limits, cost(1))).reply.said == "taken"
    assert ledger.asked == ["away", "later", "later"]


@in_virtual_time
async def test_a_declaration_leaves_who_waits_in_that_store_their_places() -> None:
    shared = ScriptedStore()
    desk, other = a_desk(shared), a_desk(shared, worker="w2")
    await other.take(TAG, Asked("holder", (), a_seat(1)))
    for entry in ("e1", "e2"):
        assert (await desk.take(TAG, Asked(entry, (), a_seat(1)))).seat == "queued"
    await desk.declare(TAG)
    assert [await desk.place(TAG, entry) for entry in ("e1", "e2")] == [1, 2]
    other.release(TAG, "holder", SPENT)
    assert await desk.turn(TAG, "e1") == "held"
    desk.release(TAG, "e1", SPENT)
    assert await desk.turn(TAG, "e2") == "held"
    assert shared.memory.in_use(TAG) == 1


@in_virtual_time
async def test_a_declaration_leaves_a_granted_slot_to_who_claims_it() -> None:
    shared = ScriptedStore()
    desk, other = a_desk(shared), a_desk(shared, worker="w2")
    await other.take(TAG, Asked("holder", (), a_seat(2)))
    await other.take(TAG, Asked("another", (), a_seat(2)))
    for entry in ("e1", "e2"):
        await desk.take(TAG, Asked(entry, (), a_seat(2)))
    for entry in ("holder", "another"):
        other.release(TAG, entry, SPENT)
    # The claim of the first is done there, and not answered; that of the second is to come.
    shared.mood = "held"
    claiming = asyncio.ensure_future(desk.turn(TAG, "e1"))
    while "claim" not in shared.steps:
        await asyncio.sleep(0)
    shared.mood = "answers"
    await desk.declare(TAG)
    assert shared.memory.in_use(TAG) == 2
    shared.gate.set()
    assert await claiming == "held"
    assert await desk.turn(TAG, "e2") == "held"
    for entry in ("e1", "e2"):
        desk.release(TAG, entry, SPENT)
    assert (await shared.entries(), shared.memory.in_use(TAG)) == (0, 0)


@in_virtual_time
async def test_what_was_topped_up_is_in_what_is_declared_anew() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    tokens = Check("tokens", "sliding", "tokens", 100, 10)
    await shared.memory.seed(TAG, seeding(100, 0))
    await desk.take(TAG, Asked("e1", (money(100, 20), tokens, slots(5), a_rate(9))))
    for more, said in ((Spent(tokens=5, cost=30), "taken"), (Spent(tokens=5, cost=90), "refused")):
        reply = await desk.top_up(TAG, "e1", more)
        assert reply is not None
        assert reply.said == said
    for is_absence in (False, True):
        shared.forgets()
        await shared.memory.seed(TAG, seeding(100, 0))
        if is_absence:
            desk.leave("a test")
            await desk.come_back()
        else:
            await desk.declare(TAG)
        assert [await shared.used(check) for check in (money(100, 0), slots(5))] == [50, 1]
    desk.release(TAG, "e1", SPENT)
    assert await shared.used(money(100, 0)) == 3


@in_virtual_time
async def test_a_worker_alone_tells_no_figures_of_its_part() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    assert (await desk.take(TAG, Asked("e0", (a_rate(4),)))).used == (1,)
    shared.mood = "deaf"
    assert (await desk.take(TAG, Asked("e1", (a_rate(4),)))).used == ()
    desk.leave("a test")
    replies = [await desk.take(TAG, Asked(f"alone{n}", (a_rate(4, counter="other"),))) for n in range(3)]
    assert [(reply.said, reply.used) for reply in replies] == [("taken", ()), ("taken", ()), ("refused", ())]
