"""Random operations on both stores, against a model of plain lists: no leak, nothing past the promise."""

import os
from collections.abc import Callable, Iterator

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.gate_stores import START_MS, TwinStores, mostly
from tests.support.model_of_gate import Entry, Model
from tidegate.admission.store import MOST, UNDO, Asked, Check, Checks, Held, Reply, Seat, Seeding, Spent

# More by hand: GATE_EXAMPLES=1200 pytest tests/integration/test_gate_stores_model.py
EXAMPLES = int(os.environ.get("GATE_EXAMPLES", "60"))
WINDOW_S = 50
QUEUE_LENGTH = 4
WORKERS = st.sampled_from(["w1", "w2", "w3"])
MOMENTS = st.sampled_from([0, 0, START_MS - 200_000, START_MS, START_MS + 5_000, START_MS + 60_000])
SPENT = st.builds(Spent, st.integers(0, 300), st.integers(0, 300), st.booleans(), MOMENTS)
REQUESTS = Check("7:key:a:p", "sliding", "requests", 6, 1)
TOKENS = Check("8:key:a", "sliding", "tokens", 500, 0)
WATCHED = Check("8:key:w", "sliding", "tokens", 100, 0, refuses=False, alerts=True)
SLOTS = Check("9:key:a:n", "held", "concurrency", 4, 1)
# What it has counted is told by taking nothing of it: so at the end.
ALWAYS = Check("10:total|}x", "calendar", "tokens", 5000, 0, alerts=True)

COMBINATIONS = ["seat", "seat", "seat slots", "seat requests always", "requests tokens slots", "tokens"]
COMBINATIONS += ["day always", "slots day", "watched", "watched tokens day"]


class GateMachine(RuleBasedStateMachine):
    """Every step is done in both stores and in the model. `open_stores` is given by the test."""

    open_stores: Callable[[], TwinStores]

    def __init__(self) -> None:
        super().__init__()
        self.stores = type(self).open_stores()
        self.model = Model()
        self.model.now_ms = START_MS
        self.capacity = 3
        self.kept: dict[tuple[Check, ...], Checks] = {}
        self.made = 0
        # What ended, for those that are told twice.
        self.ended: list[tuple[str, str, tuple[Check, ...], Spent]] = []
        # Where the store forgot a worker's entries, the worker still has them.
        self.had: dict[str, list[Held]] = {}

    @initialize(used=st.integers(0, 3000), is_seeded=st.sampled_from([True, True, True, False]))
    def begins(self, used: int, is_seeded: bool) -> None:
        if is_seeded:
            for check in (ALWAYS, self._day(0)):
                n = used * check.amount // 5000
                self.stores.seed(Seeding(check.counter, check.starts, check.ends, check.amount, n))
                self.model.seeds(check, n, (), 0)

    # Time and callers

    @rule(ms=st.sampled_from([0, 1, 10, 300, 1000, 1500, 2500, 6000, 20_000, 61_000]))
    def time_passes(self, ms: int) -> None:
        self.stores.clock.passes(ms)

    @rule(capacity=st.integers(1, 4))
    def the_upstream_is_resized(self, capacity: int) -> None:
        self.capacity = capacity

    @rule(
        worker=WORKERS,
        flow_and_size=st.tuples(st.sampled_from(["a", "b|c", "{d}:e"]), mostly(st.integers(0, 100))),
        tokens=mostly(st.integers(1, 200)),
        which=st.sampled_from(COMBINATIONS),
        times=st.integers(1, 6),
    )
    def some_come(self, worker: str, flow_and_size: tuple[str, int], tokens: int, which: str, times: int) -> None:
        for _ in range(times):
            self._takes(worker, flow_and_size, tokens, which.split())

    def _takes(self, worker: str, flow_and_size: tuple[str, int], tokens: int, which: list[str]) -> None:
        flow, size = flow_and_size
        self.made += 1
        all_checks = {
            "requests": REQUESTS,
            "tokens": Check(TOKENS.counter, "sliding", "tokens", TOKENS.amount, tokens),
            "watched": msgspec.structs.replace(WATCHED, take=tokens),
            "slots": SLOTS,
            "day": self._day(tokens),
            "always": Check(ALWAYS.counter, "calendar", "tokens", ALWAYS.amount, tokens, alerts=True),
        }
        checks = tuple(check for name, check in all_checks.items() if name in which)
        seat = Seat(self.capacity, QUEUE_LENGTH, flow, 1 + size % 3, size) if "seat" in which else None
        entry = Entry(worker, f"entry|{self.made}:{worker}", checks, seat)
        self._begins()
        self.model.lives(worker)
        before = [self.model.used(check) for check in checks]
        reply = self.stores.take(worker, self._asked(entry))
        self._judge(entry, before, reply)
        self._grants(worker)
        if reply.said == "taken":
            assert reply.seat == entry.state

    def _asked(self, entry: Entry) -> Asked:
        """As the road asks: with checks that are kept from request to request."""
        same = tuple(msgspec.structs.replace(check, take=0) for check in entry.checks)
        kept, takes = self.kept.setdefault(same, Checks(same)), tuple(check.take for check in entry.checks)
        return Asked(entry.name, kept, entry.seat, takes)

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data())
    def is_asked_again(self, data: st.DataObject) -> None:
        """Nothing more is taken of it: the counters say so in every step."""
        entry = self._one(data)
        self._begins()
        entry_now = self.model.entries.get((entry.worker, entry.name))
        if entry_now is None:
            return
        self.model.lives(entry.worker)
        reply = self.stores.take(entry.worker, self._asked(entry))
        self._grants(entry.worker)
        assert reply.said == "taken"
        assert reply.seat == entry.state

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data(), more=st.builds(Spent, mostly(st.integers(0, 50)), mostly(st.integers(0, 50))))
    def tops_up(self, data: st.DataObject, more: Spent) -> None:
        entry = self._one(data)
        self._begins()
        reply = self.stores.top_up(entry.worker, entry.name, more)
        self._grants(entry.worker)
        if (entry.worker, entry.name) not in self.model.entries:
            assert reply.said == "gone"
            return
        wanted = {"tokens": more.tokens, "cost": more.cost}
        over = [
            at
            for at, check in enumerate(entry.checks)
            if (n := wanted.get(check.meter, 0))
            and (check.kind == "sliding" or self.model.is_current(check))
            and not self.model.has_room(check, n)
        ]
        assert reply.said == ("refused" if over else "taken")
        if over:
            assert reply.at == over[0]
        else:
            assert len(reply.used) == len(entry.checks)
            self.model.tops_up(entry, more)

    # Endings

    @precondition(lambda self: self.model.entries or self.model.orphans)
    @rule(data=st.data(), spent=SPENT, times=st.integers(1, 3))
    def some_end(self, data: st.DataObject, spent: Spent, times: int) -> None:
        for _ in range(times):
            self._begins()
            known = [*self.model.entries.values(), *self.model.orphans.values()]
            if known:
                entry = data.draw(st.sampled_from(known), label="entry")
                self.stores.release(entry.worker, entry.name, spent, entry.checks)
                self._ended(entry, spent)
                self._grants(entry.worker)

    @precondition(lambda self: self.model.entries or self.model.orphans)
    @rule(data=st.data(), spent=SPENT, other=WORKERS)
    def is_recovered(self, data: st.DataObject, spent: Spent, other: str) -> None:
        """The ledger knows what it came to, and another tells it: whoever holds it, holds it no more."""
        known = [*self.model.entries.values(), *self.model.orphans.values()]
        entry = data.draw(st.sampled_from(known), label="entry")
        self._begins()
        self.stores.recover(other, entry.name, spent, entry.checks)
        self._ended(entry, spent)
        self._grants(other)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def ends_again(self, data: st.DataObject) -> None:
        worker, name, checks, spent = data.draw(st.sampled_from(self.ended[-3:]), label="ended")
        self._begins()
        self.stores.release(worker, name, spent, checks)
        # Undone, it has not been; so the same entry may be counted yet.
        self.model.spends_unknown(name, checks, spent)
        self._grants(worker)

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data(), other=WORKERS)
    def another_cannot_give_it_back(self, data: st.DataObject, other: str) -> None:
        entry = self._one(data)
        self._begins()
        if other != entry.worker and (entry.worker, entry.name) in self.model.entries:
            self.stores.release(other, entry.name, UNDO)
            self._grants(other)

    @rule(worker=WORKERS, data=st.data())
    def declares(self, worker: str, data: st.DataObject) -> None:
        """What it holds, or some of it; what it does not name is undone."""
        self._begins()
        mine = [entry for entry in self.model.entries.values() if entry.worker == worker]
        lost = [held for held in self.had.pop(worker, []) if (worker, held.entry) not in self.model.entries]
        kept = data.draw(st.lists(st.sampled_from(mine), unique_by=id), label="kept") if mine else []
        pending = [entry for entry in kept if entry.state in ("queued", "granted") and len(entry.name) % 2]
        held = [
            Held(entry.name, entry.checks, None if entry.seat is None else Seat(self.capacity, QUEUE_LENGTH))
            for entry in kept
            if entry not in pending
        ]
        held += lost
        self.model.lives(worker, at_once=True)
        self.stores.declare(worker, tuple(held), tuple(entry.name for entry in pending))
        for entry in mine:
            if entry not in kept:
                self.model.end(entry, UNDO)
        for one in held:
            self.model.holds_anyway(worker, one)
        self._grants(worker)

    # Workers and their tickets

    @rule(worker=WORKERS)
    def attends(self, worker: str) -> None:
        self._begins()
        mine = [entry for entry in self.model.entries.values() if entry.worker == worker]
        if mine:
            self.model.lives(worker, at_once=True)
        presence = self.stores.attend(worker, tuple(entry.name for entry in mine))
        self._grants(worker)
        assert presence.entries == len(mine)
        assert list(presence.waiting) == [entry.state for entry in mine]

    @precondition(lambda self: any(entry.state == "granted" for entry in self.model.entries.values()))
    @rule(data=st.data())
    def claims(self, data: st.DataObject) -> None:
        granted = [entry for entry in self.model.entries.values() if entry.state == "granted"]
        entry = data.draw(st.sampled_from(granted), label="entry")
        self._begins()
        is_still = (entry.worker, entry.name) in self.model.entries
        self.model.lives(entry.worker)
        assert self.stores.claim(entry.worker, entry.name) == is_still
        entry.state = "held" if is_still else entry.state
        self._grants("")

    # What the ledger and the server do

    @rule(used=st.integers(0, 600), data=st.data(), is_day=st.booleans(), since_ms=MOMENTS)
    def is_seeded(self, used: int, data: st.DataObject, is_day: bool, since_ms: int) -> None:
        check = self._day(0) if is_day else ALWAYS
        names = [name for _, name, _, _ in self.ended[-3:]] + [entry.name for entry in self.model.entries.values()]
        seen = tuple(data.draw(st.lists(st.sampled_from(names), unique=True), label="seen")) if names else ()
        self._begins()
        assert self.stores.seed(Seeding(check.counter, check.starts, check.ends, check.amount, used, seen, since_ms))
        self.model.seeds(check, used, seen, since_ms)
        self._grants("")

    @precondition(lambda self: self.made > 20)
    @rule(again=st.integers(0, 3))
    def the_server_forgets(self, again: int) -> None:
        if again:
            return
        for entry in self.model.entries.values():
            if entry.state in ("none", "held"):
                self.had.setdefault(entry.worker, []).append(Held(entry.name, entry.checks, entry.seat))
        self.stores.forget()
        self.model.forgets()

    # What always holds

    @invariant()
    def no_slot_is_free_while_somebody_waits(self) -> None:
        waiting = self.model.waiting
        assert len(waiting) <= QUEUE_LENGTH
        assert not waiting or self.model.in_use >= self.model.capacity

    def teardown(self) -> None:
        try:
            self._begins()
            for entry in [*self.model.entries.values(), *self.model.orphans.values()]:
                self.stores.release(entry.worker, entry.name, UNDO)
                self._ended(entry, UNDO)
                self._grants(entry.worker)
            self.stores.clock.passes(1)
            self._begins()
            # A step first: what a dead worker held is taken from it by whoever asks next.
            checks = (REQUESTS, TOKENS, WATCHED, SLOTS)
            assert self.stores.used(checks) == tuple(self.model.used(check) for check in checks)
            assert (self.stores.in_use(), self.stores.used((SLOTS,))) == (0, (0,))
            for check in (self._day(0), ALWAYS):
                self.stores.seed(Seeding(check.counter, check.starts, check.ends, check.amount, 0))
                self.model.seeds(check, 0, (), 0)
                budget = self.model.budget(check)
                assert self.stores.used((check,)) == (budget.base + sum(budget.spent.values()),)
        finally:
            self.stores.close()

    # Pieces of rules

    def _day(self, take: int) -> Check:
        starts = self.stores.clock.now_ms // 1000 // WINDOW_S * WINDOW_S
        return Check("6:day", "calendar", "cost", 1000, take, alerts=True, starts=starts, ends=starts + WINDOW_S)

    def _one(self, data: st.DataObject) -> Entry:
        return data.draw(st.sampled_from(list(self.model.entries.values())), label="entry")

    def _begins(self) -> None:
        self.model.passes_to(self.stores.clock.now_ms)
        self.stores.granted.clear()

    def _ended(self, entry: Entry, spent: Spent) -> None:
        self.model.end(entry, spent)
        self.ended.append((entry.worker, entry.name, entry.checks, spent))

    def _judge(self, entry: Entry, before: list[int], reply: Reply) -> None:
        model, checks = self.model, entry.checks
        unknown = [at for at, c in enumerate(checks) if c.kind == "calendar" and not model.budget(c).is_known]
        most = [check.amount if check.refuses else MOST for check in checks]
        over = [at for at, c in enumerate(checks) if not 0 <= c.take <= MOST or before[at] + c.take > most[at]]
        if unknown:
            assert reply.said == "unseeded"
            assert list(reply.unseeded) == unknown
        elif over:
            assert reply.said == "refused"
            assert reply.at in over
        elif reply.said == "full":
            model.capacity = self.capacity
            self._grants(entry.worker)
            assert len(model.waiting) >= QUEUE_LENGTH
            assert model.in_use >= self.capacity
        else:
            assert reply.said == "taken"
            self._admitted(entry)
            assert list(reply.used) == [model.used(check) for check in checks]
            for check in checks:
                if not check.refuses:
                    continue
                if check.kind == "sliding":
                    assert model.in_last_minute(check.counter) <= check.amount
                assert model.used(check) <= check.amount

    def _admitted(self, entry: Entry) -> None:
        self.model.takes(entry)
        if entry.seat is None:
            return
        if self.model.capacity != self.capacity:
            self.model.capacity = self.capacity
            # The others in the queue come before it, where there is more room now.
            for granted in [one for one in self.stores.granted if one[1] != entry.name]:
                self._grant(granted, entry.worker)
        if self.model.in_use < self.capacity and not self.model.waiting:
            entry.state = "held"
        else:
            assert len(self.model.waiting) < QUEUE_LENGTH
            entry.state = "queued"

    def _grants(self, asker: str) -> None:
        for granted in list(self.stores.granted):
            self._grant(granted, asker)
        for entry in self.model.waiting:
            assert self.stores.place(entry.worker, entry.name) > 0
        assert self.stores.in_use() == self.model.in_use

    def _grant(self, granted: tuple[str, str], asker: str) -> None:
        self.stores.granted.remove(granted)
        entry = self.model.entries[granted]
        assert entry.state == "queued"
        assert self.model.in_use < self.model.capacity
        entry.state = "held" if entry.worker == asker else "granted"
        entry.granted_ms = self.model.now_ms


@pytest.fixture
def machine(redis_url: str, redis_prefix: str) -> Iterator[type[GateMachine]]:
    with redis.Redis.from_url(redis_url) as client:

        class OnThisServer(GateMachine):
            open_stores = staticmethod(lambda: TwinStores(client, redis_prefix))

        yield OnThisServer


def test_both_stores_do_what_the_model_says(machine: type[GateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60,
            derandomize=EXAMPLES == 60,
            database=None,
            deadline=None,
            # Shrinking a failure takes minutes here, and the failing run is short enough to read.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
