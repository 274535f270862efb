"""The queue for slots: a flooding flow costs the calm ones little; weights and sizes count; nobody is forgotten."""

import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from statistics import mean, quantiles

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.admission.fair_queue import FairQueue, Ticket

SLOTS = 4
SERVICE_S = 1.0


def ticket(flow: str, entry: str, size: int = 100, weight: int = 1) -> Ticket:
    return Ticket("w1", entry, flow, size, weight)


def served(queue: FairQueue, n: int) -> list[str]:
    return [queue.pop().flow for _ in range(n)]


@dataclass
class Simulation:
    """An upstream of four slots in simulated time. Calm flows ask, are served, think and ask again."""

    calm: int = 9
    flooding: int = 0
    seed: int = 1
    size: int = 100
    thinking_s: float = 0.5 * SERVICE_S
    waited: list[float] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)

    def run(self, until_s: float = 2_000.0) -> "Simulation":
        rng, queue, free, now = random.Random(self.seed), FairQueue(), SLOTS, 0.0
        events: list[tuple[float, int, str, str]] = []
        asked: dict[str, float] = {}
        number = count()
        for n in range(self.calm):
            heappush(events, (rng.uniform(0, 4), next(number), "ask", f"calm-{n}"))
        for _ in range(self.flooding):
            queue.push(ticket("flood", f"e{next(number)}", self.size))
        while now < until_s:
            while free and queue:
                free -= 1
                flow = (one := queue.pop()).flow
                self.served[flow] = self.served.get(flow, 0) + one.size
                if flow == "flood":
                    # As many wait at all times.
                    queue.push(ticket("flood", f"e{next(number)}", self.size))
                else:
                    self.waited.append(now - asked[flow])
                heappush(events, (now + rng.expovariate(1 / SERVICE_S), next(number), "end", flow))
            now, _, what, flow = heappop(events)
            if what == "ask":
                asked[flow] = now
                queue.push(ticket(flow, f"e{next(number)}"))
            else:
                free += 1
                if flow != "flood":
                    heappush(events, (now + rng.expovariate(1 / self.thinking_s), next(number), "ask", flow))
        return self

    def calm_served(self) -> list[int]:
        return [n for flow, n in self.served.items() if flow != "flood"]

    @property
    def p95_s(self) -> float:
        return quantiles(self.waited, n=20)[-1]


def test_a_flood_at_most_doubles_what_the_calm_ones_wait() -> None:
    """Where the calm ones wait for each other too: nine that think for half a service's time, four slots."""
    quiet, flooded = Simulation().run(), Simulation(flooding=200).run()
    assert mean(flooded.waited) <= 2 * mean(quiet.waited)
    assert flooded.p95_s <= 2 * quiet.p95_s
    # Each calm one is served about as much as without it; the flood has what they leave.
    calm, before = flooded.calm_served(), quiet.calm_served()
    assert sum(calm) >= 0.8 * sum(before)
    assert max(calm) <= 1.3 * min(calm)


def test_a_flood_adds_half_a_services_time_where_there_was_hardly_any_waiting() -> None:
    """What is being served is not interrupted: who comes to a full upstream waits for the next slot at least."""
    quiet, flooded = Simulation(thinking_s=2.0).run(), Simulation(thinking_s=2.0, flooding=200).run()
    assert mean(flooded.waited) - mean(quiet.waited) <= 0.5 * SERVICE_S


def test_weights_and_sizes_count() -> None:
    queue = FairQueue()
    for n in range(400):
        queue.push(ticket("heavy", f"h{n}", weight=3))
        queue.push(ticket("light", f"l{n}"))
        queue.push(ticket("large", f"x{n}", size=500))
    flows = served(queue, 260)
    counts = {flow: flows.count(flow) for flow in ("heavy", "light", "large")}
    assert 2.8 <= counts["heavy"] / counts["light"] <= 3.2
    assert 4.5 <= counts["light"] / counts["large"] <= 5.5


@settings(max_examples=40, deadline=None)
@given(
    tickets=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 900), st.booleans()), min_size=40, max_size=200)
)
def test_two_flows_that_both_wait_are_apart_by_one_request_of_each_at_most(
    tickets: list[tuple[str, int, bool]],
) -> None:
    """The bound of the paper: |W_f/r_f - W_m/r_m| <= l_f/r_f + l_m/r_m while both wait. Who leaves changes nothing."""
    weights = {"a": 1, "b": 1, "c": 2, "d": 5}
    queue, waiting = FairQueue(), dict.fromkeys("abcd", 0)
    for n, (flow, size, _) in enumerate(tickets):
        queue.push(one := ticket(flow, f"e{n}", size, weights[flow]))
        queue.push(leaving := ticket(flow, f"gone{n}", 10**6))
        queue.remove(leaving)
        waiting[one.flow] += 1
    work = dict.fromkeys("abcd", 0.0)
    both = [flow for flow in "abcd" if waiting[flow]]
    while all(waiting[flow] for flow in both):
        one = queue.pop()
        waiting[one.flow] -= 1
        work[one.flow] += one.size / one.weight
        for f in both:
            for m in both:
                assert abs(work[f] - work[m]) <= 900 / weights[f] + 900 / weights[m]


def test_who_was_idle_neither_saves_up_nor_pays() -> None:
    queue = FairQueue()
    for n in range(20):
        queue.push(ticket("busy", f"b{n}"))
    served(queue, 10)
    for n in range(10):
        queue.push(ticket("late", f"l{n}"))
    assert served(queue, 8).count("late") == 4


def test_of_equal_tags_the_one_that_waits_longer_is_served() -> None:
    queue = FairQueue()
    for flow in ("z", "m", "a"):
        queue.push(ticket(flow, flow))
    assert served(queue, 3) == ["z", "m", "a"]


def test_places_count_what_is_before() -> None:
    queue, tickets = FairQueue(), [ticket("a", f"a{n}") for n in range(3)]
    for one in [*tickets, ticket("b", "b0")]:
        queue.push(one)
    assert [queue.place(one) for one in tickets] == [1, 3, 4]


def test_flows_that_come_and_go_leave_nothing() -> None:
    queue = FairQueue()
    queue.push(ticket("stays", "s"))
    for n in range(5_000):
        queue.push(leaves := ticket(f"flow-{n}", "e"))
        if n % 2:
            queue.remove(leaves)
        else:
            queue.push(ticket("stays", f"s{n}"))
            queue.pop()
            queue.pop()
    held = (queue._lines, queue._order, queue._finishes)
    assert max(len(part) for part in held) < 100
    while queue:
        queue.pop()
    assert [*queue._lines, *queue._order, *queue._finishes] == []
