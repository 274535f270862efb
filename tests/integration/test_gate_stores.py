"""What both stores of the gate promise, case by case, in the same words and on the same clock."""

import pytest

from tests.support.gate_stores import MINUTE, SEAT, SEEDING, SLOTS, START_MS, TOKENS, TOTAL, TwinStores, take
from tidegate.admission.counters import COUNTED_MS
from tidegate.admission.store import (
    LEASE_MS,
    UNDO,
    Alert,
    Asked,
    Check,
    Grant,
    Held,
    Seat,
    Seeding,
    Spent,
)


def test_no_minute_has_more_than_its_amount_and_none_much_fewer(stores: TwinStores) -> None:
    admitted: list[int] = []
    ended_ms = START_MS + 5 * 61_000
    while stores.clock.now_ms < ended_ms:
        if take(stores, "w1", f"e{stores.clock.now_ms}", MINUTE) == "taken":
            admitted.append(stores.clock.now_ms)
        stores.clock.passes(237)
    for at, moment in enumerate(admitted):
        assert sum(moment - 60_000 < other <= moment for other in admitted[: at + 1]) <= MINUTE.amount
    minutes = (ended_ms - START_MS) / 60_000
    assert len(admitted) >= minutes * MINUTE.amount * 59 / 60


def test_the_same_step_twice_is_once(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    asked = Asked("e1", (MINUTE, SLOTS, TOTAL), SEAT)
    assert stores.take("w1", asked) == stores.take("w1", asked)
    assert stores.used((MINUTE, SLOTS, TOTAL)) == (1, 1, 400)
    assert stores.in_use() == 1
    for _ in range(3):
        stores.release("w1", "e1", Spent(0, 70), (TOTAL,))
    assert stores.used((MINUTE, SLOTS, TOTAL)) == (1, 0, 370)
    assert stores.in_use() == 0


def test_an_entry_is_counted_once_also_when_its_end_is_told_again_ten_minutes_later(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    take(stores, "w1", "e1", TOTAL)
    for _ in range(2):
        stores.release("w1", "e1", Spent(0, 70), (TOTAL,))
        stores.clock.passes(COUNTED_MS)
    assert stores.used((TOTAL,)) == (370,)


def test_what_left_the_window_stays_out_of_it_however_long_nobody_asks(stores: TwinStores) -> None:
    for n, pause_s in enumerate((0, 200, 100, 62, 300)):
        stores.clock.passes(pause_s * 1000)
        assert stores.take("w1", Asked(f"e{n}", (MINUTE,))).used == (1,)


def test_a_refusal_takes_nothing_and_names_what_lasts_longest(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    full = Check("slots", "held", "concurrency", 0, 1)
    spent = Check("total", "calendar", "cost", 399, 100)
    reply = stores.take("w1", Asked("e1", (full, MINUTE, spent), SEAT))
    assert (reply.said, reply.at, reply.retry_ms) == ("refused", 2, -1)
    assert stores.used((SLOTS, MINUTE, TOTAL)) == (0, 0, 300)
    assert stores.in_use() == 0


def test_nobody_gives_back_what_another_holds(stores: TwinStores) -> None:
    take(stores, "w1", "e1", SLOTS, seat=SEAT)
    stores.release("w2", "e1", Spent())
    stores.declare("w2", ())
    assert (stores.in_use(), stores.used((SLOTS,))) == (1, (1,))


def test_a_dead_workers_slots_come_back_after_its_lease(stores: TwinStores) -> None:
    for entry in ("e1", "e2"):
        assert take(stores, "w1", entry, SLOTS, seat=SEAT) == "held"
    assert take(stores, "w2", "e3", SLOTS, seat=SEAT) == "queued"
    stores.clock.passes(LEASE_MS - 1)
    assert stores.attend("w2", ("e3",)).waiting == ("queued",)
    stores.clock.passes(1)
    assert stores.attend("w2", ("e3",)).waiting == ("held",)
    assert (stores.in_use(), stores.used((SLOTS,))) == (1, (1,))


def test_a_renewed_lease_holds(stores: TwinStores) -> None:
    take(stores, "w1", "e1", SLOTS, seat=SEAT)
    for _ in range(10):
        stores.clock.passes(5_000)
        assert stores.attend("w1").entries == 1
    assert stores.in_use() == 1


def test_a_grant_that_nobody_claims_goes_on_after_2_s_and_is_as_if_it_had_never_been(stores: TwinStores) -> None:
    take(stores, "w1", "e1", seat=Seat(1, 3))
    assert take(stores, "w2", "e2", TOKENS, seat=Seat(1, 3)) == "queued"
    assert take(stores, "w3", "e3", seat=Seat(1, 3)) == "queued"
    stores.release("w1", "e1", Spent())
    stores.clock.passes(1_999)
    assert stores.attend("w3", ("e3",)).waiting == ("queued",)
    stores.clock.passes(1)
    assert stores.attend("w3", ("e3",)).grants == (Grant("w3", "e3"),)
    assert not stores.claim("w2", "e2")
    assert stores.used((TOKENS,)) == (0,)


def test_a_claimed_grant_stays(stores: TwinStores) -> None:
    take(stores, "w1", "e1", seat=Seat(1, 3))
    take(stores, "w2", "e2", seat=Seat(1, 3))
    stores.release("w1", "e1", Spent())
    assert stores.claim("w2", "e2")
    stores.clock.passes(10_000)
    assert stores.attend("w2", ("e2",)).waiting == ("held",)


def test_a_slot_that_comes_free_in_any_step_is_granted_in_it(stores: TwinStores) -> None:
    take(stores, "w1", "e1", seat=Seat(1, 3))
    stores.clock.passes(1_000)
    take(stores, "w2", "e2", seat=Seat(1, 3))
    stores.clock.passes(LEASE_MS - 1_000)
    assert stores.place("w2", "e2") == 0
    assert stores.claim("w2", "e2")


def test_a_step_that_grants_its_own_entry_a_slot_says_so(stores: TwinStores) -> None:
    take(stores, "w1", "e1", seat=Seat(1, 3))
    stores.clock.passes(1_000)
    take(stores, "w2", "e2", TOKENS, seat=Seat(1, 3))
    stores.clock.passes(LEASE_MS - 1_000)
    reply = stores.top_up("w2", "e2", Spent(10, 0))
    assert (reply.seat, reply.grants) == ("held", (Grant("w2", "e2"),))


def test_the_queue_is_bounded_and_a_larger_upstream_serves_it_at_once(stores: TwinStores) -> None:
    said = [take(stores, "w1", f"e{n}", seat=SEAT) for n in range(6)]
    assert said == ["held", "held", "queued", "queued", "queued", "full"]
    assert [stores.place("w1", f"e{n}") for n in range(6)] == [0, 0, 1, 2, 3, 0]
    assert take(stores, "w1", "e6", seat=Seat(5, 3)) == "queued"
    assert stores.attend("w1", ("e2", "e3", "e4", "e6")).waiting == ("held", "held", "held", "queued")


def test_who_finds_the_queue_full_is_told_the_pace_that_was_seen(stores: TwinStores) -> None:
    seat = Seat(1, 2)
    for entry in ("e0", "e1", "e2"):
        take(stores, "w1", entry, seat=seat)
    for entry in ("e0", "e1"):
        stores.clock.passes(3_000)
        stores.release("w1", entry, Spent())
    for entry in ("e3", "e4"):
        take(stores, "w1", entry, seat=seat)
    assert stores.take("w1", Asked("e5", (), seat)).retry_ms == 9_000


def test_what_is_undone_has_never_been(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    checks = (MINUTE, TOKENS, SLOTS, TOTAL)
    take(stores, "w1", "e1", *checks, seat=SEAT)
    before = stores.used(checks)
    take(stores, "w2", "e2", *checks, seat=SEAT)
    stores.top_up("w2", "e2", Spent(50, 50))
    assert stores.used(checks) != before
    stores.release("w2", "e2", UNDO, checks)
    assert (stores.used(checks), stores.in_use()) == (before, 1)


def test_a_stream_tops_up_while_there_is_room(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    take(stores, "w1", "e1", TOKENS, TOTAL)
    assert stores.top_up("w1", "e1", Spent(100, 600)).said == "taken"
    assert stores.used((TOKENS, TOTAL)) == (200, 1000)
    refused = stores.top_up("w1", "e1", Spent(100, 1))
    assert (refused.said, refused.at) == ("refused", 1)
    assert stores.used((TOKENS, TOTAL)) == (200, 1000)
    assert stores.top_up("w1", "e0", Spent(1, 1)).said == "gone"


def test_what_a_long_stream_tops_up_counts_when_it_is_asked_for(stores: TwinStores) -> None:
    take(stores, "w1", "e1", TOKENS)
    for _ in range(15):
        stores.clock.passes(5_000)
        stores.attend("w1")
    take(stores, "w1", "e2", TOKENS)
    assert stores.top_up("w1", "e1", Spent(40, 0)).used == (140,)
    stores.release("w1", "e1", Spent(50, 0))
    # Only what it counted itself is its to give back: the first hundred have left the window.
    assert stores.used((TOKENS,)) == (100,)


@pytest.mark.parametrize("seen", [(), ("e1",)])
def test_what_ended_before_the_seeding_is_counted_once(stores: TwinStores, seen: tuple[str, ...]) -> None:
    assert stores.take("w1", Asked("e1", (TOTAL,))).said == "unseeded"
    stores.release("w1", "e1", Spent(0, 70), (TOTAL,))
    assert stores.seed(Seeding("total", 0, 0, 1000, 370 if seen else 300, seen))
    stores.release("w1", "e1", Spent(0, 70), (TOTAL,))
    assert stores.used((TOTAL,)) == (370,)


def test_what_ends_after_a_seeding_that_saw_it_is_not_counted_again(stores: TwinStores) -> None:
    stores.declare("w1", (Held("e1", (TOTAL,), None),))
    assert stores.seed(Seeding("total", 0, 0, 1000, 300, ("e1",)))
    assert stores.used((TOTAL,)) == (400,)
    stores.release("w1", "e1", Spent(0, 70), (TOTAL,))
    assert stores.used((TOTAL,)) == (300,)


def test_only_the_first_seeding_counts(stores: TwinStores) -> None:
    assert [stores.seed(SEEDING), stores.seed(Seeding("total", 0, 0, 1000, 900))] == [True, True]
    assert stores.used((TOTAL,)) == (300,)


def test_the_next_window_begins_at_nothing_and_any_other_is_seeded(stores: TwinStores) -> None:
    second = START_MS // 1000
    today = Check("day", "calendar", "cost", 1000, 100, starts=second, ends=second + 60)
    next_day = Check("day", "calendar", "cost", 1000, 100, starts=second + 60, ends=second + 120)
    stores.seed(Seeding("day", second, second + 60, 1000, 990))
    assert take(stores, "w1", "e1", today) == "refused"
    assert take(stores, "w1", "e1", next_day) == "clock"
    stores.clock.passes(60_000)
    assert take(stores, "w1", "e1", today) == "clock"
    assert take(stores, "w1", "e1", next_day) == "taken"
    last = Check("day", "calendar", "cost", 1000, 100, starts=second + 50, ends=second + 110)
    assert take(stores, "w1", "e2", last) == "unseeded"


def test_each_level_of_a_budget_is_told_once(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    told: list[Alert] = []
    for n in range(8):
        if take(stores, "w1", f"e{n}", TOTAL) == "taken":
            told += stores.release("w1", f"e{n}", Spent(0, 100))
    reply = stores.take("w1", Asked("e9", (TOTAL,)))
    told += [*reply.alerts, *stores.take("w1", Asked("e9", (TOTAL,))).alerts]
    assert [(alert.level, alert.used) for alert in told] == [(50, 500), (80, 800), (100, 1000)]


def test_a_dead_workers_money_waits_for_the_ledger_and_is_counted_in_an_hour(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    for entry in ("e1", "e2", "e3"):
        take(stores, "w1", entry, TOTAL, SLOTS)
    stores.clock.passes(LEASE_MS)
    assert stores.used((TOTAL, SLOTS)) == (600, 0)
    stores.release("w2", "e1", Spent(0, 7), (TOTAL,))
    stores.release("w2", "e2", UNDO, (TOTAL,))
    assert stores.used((TOTAL,)) == (407,)
    stores.clock.passes(3_600_000)
    assert stores.used((TOTAL,)) == (407,)
    # It is counted by now: whoever learns of it late counts nothing more.
    stores.release("w2", "e3", Spent(0, 50), (TOTAL,))
    assert stores.used((TOTAL,)) == (407,)


def test_what_the_ledger_recovered_ends_whoever_holds_it(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    for entry in ("e1", "e2"):
        take(stores, "w1", entry, TOTAL, SLOTS, seat=Seat(1, 3))
    stores.recover("w2", "e1", Spent(0, 7), (TOTAL,))
    assert (stores.used((TOTAL, SLOTS)), stores.place("w1", "e2")) == ((407, 1), 0)
    stores.recover("w2", "e1", Spent(0, 7), (TOTAL,))
    assert stores.used((TOTAL, SLOTS)) == (407, 1)


def test_what_another_settled_before_the_lease_ended_is_not_counted_again(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    take(stores, "w1", "e1", TOTAL)
    stores.release("w2", "e1", Spent(0, 7), (TOTAL,))
    stores.clock.passes(LEASE_MS)
    assert stores.used((TOTAL,)) == (307,)


def test_a_worker_that_stood_still_declares_and_holds_what_it_held(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    take(stores, "w1", "e1", TOTAL, SLOTS, MINUTE, seat=SEAT)
    stores.clock.passes(LEASE_MS)
    assert stores.attend("w1").entries == 0
    stores.declare("w1", (Held("e1", (TOTAL, SLOTS, MINUTE), SEAT),))
    assert (stores.used((TOTAL, SLOTS, MINUTE)), stores.in_use()) == ((400, 1, 1), 1)
    stores.release("w1", "e1", Spent(0, 70))
    assert (stores.used((TOTAL, SLOTS, MINUTE)), stores.in_use()) == ((370, 0, 1), 0)


def test_a_declaration_undoes_what_it_does_not_name_and_leaves_what_is_pending(stores: TwinStores) -> None:
    stores.seed(SEEDING)
    for entry in ("e1", "e2", "e3"):
        take(stores, "w1", entry, TOTAL, seat=SEAT)
    presence = stores.declare("w1", (Held("e1", (TOTAL,), SEAT),), ("e3",))
    assert presence.entries == 2
    assert (stores.used((TOTAL,)), stores.in_use()) == ((500,), 2)
    assert stores.attend("w1", ("e1", "e2", "e3")).waiting == ("held", "none", "held")


def test_a_declared_slot_is_held_even_where_the_store_has_only_granted_it(stores: TwinStores) -> None:
    take(stores, "w1", "e1", seat=Seat(1, 3))
    take(stores, "w2", "e2", seat=Seat(1, 3))
    take(stores, "w2", "e3", seat=Seat(1, 3))
    stores.release("w1", "e1", Spent())
    stores.declare("w2", (Held("e2", (), Seat(1, 3)), Held("e3", (), Seat(1, 3))))
    assert stores.in_use() == 2
    stores.clock.passes(3_000)
    assert stores.attend("w2", ("e2", "e3")).waiting == ("held", "held")


def test_strange_names_and_large_numbers_are_but_names_and_numbers(stores: TwinStores) -> None:
    most = 9 * 10**15
    odd = 'k|}{:p\n"é*[a]'
    money = Check(odd, "calendar", "cost", most, most - 5)
    held = Check(f"{odd}:n", "held", "concurrency", 1, 1)
    sliding = Check(f"{odd}:p", "sliding", "tokens", most, most)
    stores.seed(Seeding(odd, 0, 0, most, 5, (f"seen|{odd}",)))
    assert take(stores, "w1", odd, money, held, sliding, seat=Seat(1, 3, odd)) == "held"
    assert take(stores, "w2", f"2|{odd}", seat=Seat(1, 3, odd, 3, 10**9)) == "queued"
    assert stores.used((money, held, sliding)) == (most, 1, most)
    stores.release("w1", odd, Spent(most, most - 6))
    assert stores.claim("w2", f"2|{odd}")
    assert stores.used((money, held, sliding)) == (most - 1, 0, most)


def test_thousands_are_declared_and_seeded_in_one_step(stores: TwinStores) -> None:
    held = tuple(Held(f"entry-{n}", (TOTAL, SLOTS), SEAT) for n in range(3000))
    assert stores.declare("w1", held).entries == 3000
    assert stores.seed(Seeding("total", 0, 0, 1000, 300, tuple(one.entry for one in held)))
    for one in held:
        stores.release("w1", one.entry, Spent(0, 5))
    assert (stores.used((TOTAL, SLOTS)), stores.in_use()) == ((300, 0), 0)
