"""What is the memory store's alone; what both stores promise is in `integration/test_gate_stores*.py`."""

from tidegate.admission.memory_store import MemoryStore
from tidegate.admission.store import (
    CLAIM_WITHIN_MS,
    LEASE_MS,
    Alert,
    Asked,
    Check,
    Checks,
    Held,
    Reply,
    Seat,
    Seeding,
    Spent,
)

START_MS = 1_800_000_000_000
SLOTS = Check("slots", "held", "concurrency", 4, 1)
BUDGET = Check("budget", "calendar", "cost", 1000, 10)
MINUTE = Check("minute", "sliding", "requests", 60, 1)


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


async def test_everyone_who_is_granted_is_told() -> None:
    told: list[tuple[str, str, str]] = []
    store = MemoryStore(Clock(), told=lambda *grant: told.append(grant))
    for worker in ("w1", "w2"):
        await store.take("u:1", worker, Asked(f"{worker}-e", (), Seat(1, 5)))
    store.release("u:1", "w1", "w1-e", Spent())
    assert told == [("w2", "u:1", "w2-e")]
    assert store.in_use("u:1") == 1
    assert store.in_use("u:2") == 0


async def test_what_is_declared_at_once_is_held() -> None:
    store = MemoryStore(Clock())
    presence = store.declared("u:1", "w1", [Held("e1", (SLOTS,), Seat(1, 5))], ())
    assert (presence.entries, store.in_use("u:1")) == (1, 1)
    assert (await store.take("u:1", "w2", Asked("e2", (), Seat(1, 5)))).seat == "queued"


async def test_tags_and_counters_that_are_not_in_use_are_forgotten() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    for n in range(2_000):
        tag, minute = f"w:{n}", Check(f"user-{n}", "sliding", "requests", 60, 1)
        for where, entry in ((tag, "e1"), ("d", f"e{n}")):
            await store.take(where, "w1", Asked(entry, (minute, SLOTS)))
            store.release(where, "w1", entry, Spent())
        clock.now_ms += 1_000
    assert len(store._tags) < 300
    assert len(store._tags["d"].counters) < 300


async def test_a_limit_that_becomes_another_counts_anew() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    await store.take("w:1", "w1", Asked("e1", (MINUTE,)))
    as_slots = Check("minute", "held", "concurrency", 1, 1)
    assert (await store.take("w:1", "w1", Asked("e2", (as_slots,)))).used == (1,)
    store.release("w:1", "w1", "e1", Spent())
    assert (await store.take("w:1", "w1", Asked("e3", (as_slots,)))).said == "refused"
    clock.now_ms += LEASE_MS
    assert (await store.take("w:1", "w1", Asked("e3", (as_slots,)))).said == "taken"


async def test_a_wall_clock_that_jumps_frees_no_slot_that_is_held() -> None:
    wall, steady = Clock(), Clock()
    store = MemoryStore(wall, steady_ms=steady)
    await store.seed("u:1", Seeding("budget", 0, 0, 1000, 0))
    await store.take("u:1", "w1", Asked("e1", (SLOTS, BUDGET), Seat(1, 5)))
    await store.take("u:1", "w2", Asked("e2", (), Seat(1, 5)))
    for jump_ms in (LEASE_MS, -3_600_000, 86_400_000):
        wall.now_ms += jump_ms
        presence = await store.attend("u:1", "w2", ("e2",))
        assert (presence.waiting, store.in_use("u:1")) == (("queued",), 1)
    steady.now_ms += LEASE_MS
    assert (await store.attend("u:1", "w2", ("e2",))).entries == 0
    assert store.in_use("u:1") == 0


async def test_the_clocks_of_a_store_that_is_given_none_do_not_bury_who_lives() -> None:
    store = MemoryStore()
    assert (await store.take("u:1", "w1", Asked("e1", (MINUTE, SLOTS), Seat(1, 5)))).seat == "held"
    assert (await store.attend("u:1", "w1", ("e1",))).waiting == ("held",)


async def test_a_store_of_one_worker_that_stood_still_holds_what_it_held() -> None:
    clock, told = Clock(), list[str]()
    store = MemoryStore(clock, told=lambda worker, tag, entry: told.append(entry), leases=False)
    await store.seed("u:1", Seeding("budget", 0, 0, 1000, 0))
    await store.take("u:1", "w1", Asked("e1", (SLOTS, BUDGET), Seat(1, 5)))
    for entry in ("e2", "e3"):
        assert (await store.take("u:1", "w1", Asked(entry, (SLOTS,), Seat(1, 5)))).seat == "queued"
    clock.now_ms += 100 * LEASE_MS
    assert (await store.attend("u:1", "w1", ("e1", "e2"))).waiting == ("held", "queued")
    # Whoever's step it is, who is granted a slot holds it: there is nobody to whom it could go on.
    store.recover("u:1", "another", "e1", Spent(cost=7))
    assert told == ["e2"]
    clock.now_ms += 100 * CLAIM_WITHIN_MS
    assert (await store.attend("u:1", "w1", ("e2", "e3"))).waiting == ("held", "queued")
    assert (await store.take("u:1", "w1", Asked("e4", (SLOTS, BUDGET)))).used == (3, 17)


async def test_a_store_of_one_worker_forgets_tags_that_are_not_in_use() -> None:
    clock = Clock()
    store = MemoryStore(clock, leases=False)
    for n in range(500):
        await store.take(f"w:{n}", "w1", Asked("e1", (MINUTE, SLOTS)))
        store.release(f"w:{n}", "w1", "e1", Spent())
        clock.now_ms += 1_000
    assert len(store._tags) < 300


async def test_what_a_top_up_sets_off_is_told() -> None:
    told: list[tuple[str, tuple[Alert, ...]]] = []
    store = MemoryStore(Clock(), alerted=lambda *alert: told.append(alert))
    watched = Check("watched", "sliding", "tokens", 100, 90, refuses=False, alerts=True)
    await store.take("w:1", "w1", Asked("e1", (watched,)))
    assert told == []
    await store.top_up("w:1", "w1", "e1", Spent(20))
    assert told == [("w:1", (Alert("watched", 100, 110, 100),))]


async def test_checks_that_are_asked_for_again_are_counted_by_the_counters_of_now() -> None:
    """Bound once, they are bound anew where a counter was forgotten, became another, or began another window."""
    clock = Clock()
    store = MemoryStore(clock)
    day_s = 86_400
    starts = START_MS // 1000 // day_s * day_s
    minute, slots = Checks((MINUTE,)), Checks((SLOTS,))
    days = [
        Checks((Check("day", "calendar", "cost", 1000, 0, starts=at, ends=at + day_s),))
        for at in (starts, starts + day_s)
    ]

    async def take(entry: str, checks: Checks, *takes: int) -> Reply:
        return await store.take("w:1", "w1", Asked(entry, checks, takes=takes))

    await store.seed("w:1", Seeding("day", starts, starts + day_s, 1000, 100))
    assert (await take("e1", days[0], 5)).used == (105,)
    assert (await take("e2", slots, 2)).used == (2,)
    assert (await take("e3", minute, 3)).used == (3,)
    # Another limit of the same name, and then the first again.
    as_slots = Checks((Check("minute", "held", "concurrency", 9, 1),))
    assert (await take("e4", as_slots, 1)).used == (1,)
    assert (await take("e5", minute, 1)).used == (1,)
    store.release("w:1", "w1", "e4", Spent())
    assert (await take("e6", minute, 1)).used == (2,)
    # The next day, and what was taken on the last.
    clock.now_ms = (starts + day_s) * 1000
    store._tags["w:1"].leases["w1"] = clock.now_ms + LEASE_MS
    assert (await take("e7", days[0], 1)).said == "clock"
    assert (await take("e8", days[1], 7)).used == (7,)
    store.release("w:1", "w1", "e1", Spent(cost=50))
    assert (await take("e9", days[1], 1)).used == (8,)
    # What slides was looked through and forgotten: e3 and the others left the window.
    assert (await take("e10", minute, 4)).used == (4,)
    assert (await take("e11", slots, 0)).used == (2,)


async def test_a_step_that_is_refused_has_taken_nothing_of_any_counter() -> None:
    store = MemoryStore(Clock())
    await store.seed("w:1", Seeding("budget", 0, 0, 1000, 0))
    full = Check("full", "held", "concurrency", 0, 1)
    unseeded = Check("unseeded", "calendar", "cost", 9, 1)
    for last, said in ((full, "refused"), (unseeded, "unseeded")):
        checks = Checks((MINUTE, SLOTS, BUDGET, last))
        assert (await store.take("w:1", "w1", Asked("e1", checks, takes=(1, 1, 10, 1)))).said == said
    assert (await store.take("u:1", "w1", Asked("e2", (SLOTS,), Seat(0, 0)))).said == "full"
    assert (await store.take("w:1", "w1", Asked("e3", (MINUTE, SLOTS, BUDGET)))).used == (1, 1, 10)
    assert (await store.take("u:1", "w1", Asked("e4", (SLOTS,)))).used == (1,)


async def test_checks_that_are_kept_are_not_judged_in_a_window_that_ended() -> None:
    wall, steady = Clock(), Clock()
    store = MemoryStore(wall, steady_ms=steady)
    hour = Checks((Check("hour", "calendar", "cost", 9, 1, starts=START_MS // 1000, ends=START_MS // 1000 + 3600),))
    await store.seed("w:1", Seeding("hour", hour[0].starts, hour[0].ends, 9, 0))
    for after_ms, said in ((0, "taken"), (3_599_999, "taken"), (3_600_000, "clock"), (-1, "clock")):
        wall.now_ms = START_MS + after_ms
        assert (await store.take("w:1", "w1", Asked(f"e{after_ms}", hour, takes=(1,)))).said == said


async def test_who_asks_of_what_nobody_seeded_takes_nothing_from_those_who_hold_it() -> None:
    store = MemoryStore(Clock())
    store.declared("w:1", "w1", [Held("e1", (BUDGET,), None)], ())
    assert (await store.take("w:1", "w1", Asked("e2", (MINUTE, BUDGET)))).said == "unseeded"
    await store.seed("w:1", Seeding("budget", 0, 0, 1000, 0))
    assert (await store.take("w:1", "w1", Asked("e2", (BUDGET,)))).used == (20,)
