"""What both stores of the gate promise of what is told late, and of what cannot be counted."""

import msgspec
import pytest
import redis

from tests.support.gate_stores import MINUTE, SEEDING, SLOTS, START_MS, TAG, TOKENS, TOTAL, TwinStores, take
from tidegate.admission.store import MOST, MOST_UNSETTLED, Asked, Check, Checks, Held, Seat, Seeding, Spent


def test_what_ended_long_before_the_seeding_is_in_the_sum_whenever_it_is_told(stores: TwinStores) -> None:
    """After an outage: the sum names what ended in its last two minutes, and the desk tells all that ended in it."""
    since_ms = START_MS - 120_000
    long_ago, named, unheard = Spent(0, 70, ended_ms=since_ms - 1), Spent(0, 5, ended_ms=since_ms), Spent(0, 3)
    for entry, spent in (("long ago", long_ago), ("named", named), ("unheard", unheard)):
        stores.release("w1", entry, spent, (TOTAL,))
    assert stores.seed(Seeding("total", 0, 0, 1000, 375, ("named",), since_ms))
    assert stores.used((TOTAL,)) == (378,)
    # Another worker is back later, and tells the same of its own.
    stores.release("w2", "another's", long_ago, (TOTAL,))
    stores.release("w2", "another's, unheard", named, (TOTAL,))
    assert stores.used((TOTAL,)) == (383,)


def test_of_what_ended_before_the_seeding_a_bounded_number_is_kept_and_none_is_counted_wrongly(
    stores: TwinStores, client: "redis.Redis", redis_prefix: str
) -> None:
    """What was dropped ended at START + 1,002 ms or before: a sum that does not name all since then is not enough."""
    # The last comes first, so it is by their ends that they are dropped.
    ends = {f"e{n:06}": START_MS + 1_000 + (n or 5) for n in range(MOST_UNSETTLED)}
    first, *others = ends
    stores.release("w1", first, Spent(0, 1, ended_ms=ends[first]), (TOTAL,))
    for entry in others:
        stores.memory.released(TAG, "w1", entry, Spent(0, 1, ended_ms=ends[entry]), (TOTAL,))
    base = f"{redis_prefix}:{{{TAG}}}"
    # As the script would, one by one, in ten seconds.
    client.hset(f"{base}:p:total", mapping=dict.fromkeys(others, 1))
    client.zadd(f"{base}:pz:total", {entry: ends[entry] for entry in others})
    for n in (0, 1):
        stores.release("w1", f"last {n}", Spent(0, 1, ended_ms=START_MS + 100_000), (TOTAL,))
    assert client.zcard(f"{base}:pz:total") == client.hlen(f"{base}:p:total") == MOST_UNSETTLED
    total = Check("total", "calendar", "cost", 10**6, 100)
    for since_ms in (0, START_MS, START_MS + 1_002):
        assert not stores.seed(Seeding("total", 0, 0, 10**6, 0, (), since_ms))
        assert stores.take("w1", Asked("e", (total,))).said == "unseeded"
    assert stores.seed(Seeding("total", 0, 0, 10**6, 0, (), START_MS + 1_003))
    assert stores.used((total,)) == (MOST_UNSETTLED,)


@pytest.mark.parametrize("amount", [-1, -(2**63), MOST + 1, 2**63 - 1, 2**63, 2**64, 2**70])
@pytest.mark.parametrize("refuses", [True, False])
def test_what_cannot_be_counted_is_refused_and_never_counted(stores: TwinStores, amount: int, refuses: bool) -> None:
    stores.seed(SEEDING)
    tokens = Check("tokens", "sliding", "tokens", 1000, 100, refuses)
    total = Check("total", "calendar", "cost", 1000, 100, refuses)
    for check in (tokens, total):
        reply = stores.take("w1", Asked("e1", (MINUTE, msgspec.structs.replace(check, take=amount))))
        assert (reply.said, reply.at) == ("refused", 1)
    take(stores, "w1", "e2", tokens, total)
    assert stores.top_up("w1", "e2", Spent(amount, 0)).at == 0
    assert stores.top_up("w1", "e2", Spent(1, amount)).at == 1
    assert stores.used((MINUTE, tokens, total)) == (0, 100, 400)


@pytest.mark.parametrize("amount", [MOST, 2**63, 2**70])
def test_a_limit_that_is_asked_for_again_may_be_more_than_can_be_counted(stores: TwinStores, amount: int) -> None:
    checks = Checks((msgspec.structs.replace(MINUTE, amount=amount),))
    assert [stores.take("w1", Asked(f"e{n}", checks, takes=(2,))).used for n in (1, 2)] == [(2,), (4,)]


@pytest.mark.parametrize("amount", [MOST, 2**63, 2**70])
def test_counters_end_where_numbers_do(stores: TwinStores, amount: int) -> None:
    stores.seed(Seeding("total", 0, 0, amount, amount))
    total, watched = Check("total", "calendar", "cost", amount, 1), Check("watched", "sliding", "tokens", 9, 9, False)
    assert take(stores, "w1", "e1", total) == "refused"
    for entry in ("e2", "e3"):
        take(stores, "w1", entry, watched, seat=Seat(2, 9, "flow", amount, amount))
        stores.release("w1", entry, Spent(amount, amount), (total,))
        stores.release("w1", f"unknown {entry}", Spent(amount, amount), (total,))
    assert stores.used((total, watched)) == (MOST, MOST)
    assert take(stores, "w1", "e4", watched) == "refused"
    held = Held("e5", (total, Check("slots", "held", "concurrency", 4, amount)), Seat(2, 9, "flow", -amount, amount))
    stores.declare("w1", (held, held))
    stores.release("w1", "e5", Spent(-amount, -amount))
    assert stores.used((total, SLOTS)) == (MOST, 0)


def test_a_declared_entrys_checks_keep_their_places(stores: TwinStores) -> None:
    second = START_MS // 1000
    over = Check("yesterday", "calendar", "cost", 1000, 100, starts=second - 60, ends=second)
    stores.seed(SEEDING)
    checks = (MINUTE, TOKENS, over, TOTAL)
    stores.declare("w1", (Held("e1", checks, None),))
    refused = stores.top_up("w1", "e1", Spent(1, 601))
    assert (refused.said, refused.at) == ("refused", 3)
    assert stores.take("w1", Asked("e1", checks)).used == (0, 0, 0, 400)
    assert stores.top_up("w1", "e1", Spent(40, 600)).used == (0, 40, 0, 1000)
    stores.clock.passes(1_000)
    # What it took before it was declared is not known here, and what it came to is not counted twice.
    stores.release("w1", "e1", Spent(30, 500))
    assert stores.used((MINUTE, TOKENS, TOTAL)) == (0, 30, 800)


def test_a_stream_that_was_quiet_for_longer_than_the_window_tops_up_all_the_same(stores: TwinStores) -> None:
    take(stores, "w1", "e1", TOKENS)
    for _ in range(30):
        stores.clock.passes(5_000)
        stores.attend("w1")
    assert stores.top_up("w1", "e1", Spent(40, 0)).used == (40,)
    assert stores.used((TOKENS,)) == (40,)
