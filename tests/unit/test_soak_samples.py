"""What a soak makes of its samples: a leak is seen, and what stands still or only swings is not called one."""

import itertools
from collections.abc import Callable

import pytest
from benchmarks.soak_samples import RESIDENT, TASKS, Bounds, Sample, growth, kind_of, table, thirds

HOUR_S = 3600.0


def samples(
    *, memory: Callable[[int], float] = lambda n: 180.0, tasks: Callable[[int], float] = lambda n: 300.0, keys: int = 0
) -> list[Sample]:
    """An hour of one worker, a sample every minute. `keys` is by how many more each sample has."""
    return [
        Sample({7: {RESIDENT: memory(n), TASKS: tasks(n)}}, {"{w}:t": 1 + keys * n}, {"{w}:e": 100 + n})
        for n in range(60)
    ]


def too_much(found: list[Sample], *, seconds: float = HOUR_S) -> list[tuple[str, str]]:
    return [(grown.whose, grown.what) for grown in growth(found, Bounds(), seconds=seconds) if grown.is_too_much]


def test_what_swings_fills_at_first_or_shrinks_has_not_grown() -> None:
    swings = itertools.cycle((250.0, 300.0, 350.0))
    filled = samples(memory=lambda n: 120 + min(n, 18) * 3, tasks=lambda n: next(swings))
    assert too_much(filled, seconds=60) == []
    assert too_much(samples(memory=lambda n: 200.0 - n), seconds=60) == []


def test_memory_that_grows_slowly_is_seen() -> None:
    # 6 % from one third to the next.
    assert too_much(samples(memory=lambda n: 180 + 0.6 * n), seconds=60) == [("worker 1", RESIDENT)]
    assert too_much(samples(memory=lambda n: 180 + 0.4 * n), seconds=60) == []


def test_a_task_and_a_key_that_stay_are_seen() -> None:
    assert too_much(samples(tasks=lambda n: 300 + 2 * n), seconds=60) == [("all workers", TASKS)]
    assert too_much(samples(keys=1), seconds=60) == [("keys in Redis", "{w}:t")]


def test_what_is_bounded_by_time_is_judged_once_it_had_that_time() -> None:
    assert too_much(samples(), seconds=HOUR_S) == [("members of them", "{w}:e")]
    assert too_much(samples(), seconds=600) == []
    assert "{w}:e" in table(growth(samples(), Bounds(), seconds=600))
    assert "still fills" in table(growth(samples(), Bounds(), seconds=600))


def test_a_worker_that_was_replaced_is_no_measure() -> None:
    found = samples()
    found[30] = Sample({8: found[30].workers[7]}, {}, {})
    with pytest.raises(ValueError, match="a worker left or came"):
        growth(found, Bounds(), seconds=HOUR_S)


def test_two_samples_have_no_thirds() -> None:
    with pytest.raises(ValueError, match="let it run longer"):
        thirds([1.0, 2.0])
    assert thirds([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tidegate:{u:openai}:h:4711-ab", "{u}:h"),
        ("tidegate:{w:0193a5c2-0000-7000-8000-000000000001}:l:key:1", "{w}:l"),
        ("tidegate:{d}:workers", "{d}:workers"),
        ("tidegate:changes:0193a5c20000", "changes:*"),
        ("tidegate:open-17", "open-*"),
    ],
)
def test_keys_that_differ_in_who_they_are_of_are_one_kind(name: str, kind: str) -> None:
    assert kind_of(name, "tidegate") == kind
