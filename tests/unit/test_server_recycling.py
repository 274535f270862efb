import os

import pytest

from tidegate.server.recycling import Crew, Orders, WordPipe


def serving(crew: Crew, *pids: int) -> None:
    for pid in pids:
        crew.hear("serving", pid)


@pytest.fixture
def crew() -> Crew:
    """Two workers, 1 and 2, that serve."""
    crew = Crew(wanted=2)
    assert crew.orders(()) == Orders(start=2)
    serving(crew, 1, 2)
    assert crew.orders((1, 2)) == Orders()
    return crew


def test_a_worn_worker_leaves_only_when_its_replacement_serves(crew: Crew) -> None:
    crew.hear("worn", 1)
    assert crew.orders((1, 2)) == Orders(start=1)
    assert crew.orders((1, 2, 3)) == Orders()
    serving(crew, 3)
    assert crew.orders((1, 2, 3)) == Orders(retire=(1,))
    assert crew.orders((1, 2, 3)) == Orders()
    assert crew.orders((2, 3)) == Orders()


def test_one_is_replaced_at_a_time(crew: Crew) -> None:
    crew.hear("worn", 1)
    crew.hear("worn", 2)
    assert crew.orders((1, 2)) == Orders(start=1)
    serving(crew, 3)
    assert crew.orders((1, 2, 3)) == Orders(retire=(1,))
    assert crew.orders((1, 2, 3)) == Orders()
    assert crew.orders((2, 3)) == Orders(start=1)


def test_a_replacement_that_dies_is_replaced_and_the_worn_one_stays(crew: Crew) -> None:
    crew.hear("worn", 1)
    assert crew.orders((1, 2)) == Orders(start=1)
    assert crew.orders((1, 2)) == Orders(start=1)


def test_another_worker_that_dies_meanwhile_keeps_the_worn_one(crew: Crew) -> None:
    crew.hear("worn", 1)
    serving(crew, 3)
    assert crew.orders((1, 3)) == Orders(start=1)
    serving(crew, 4)
    assert crew.orders((1, 3, 4)) == Orders(retire=(1,))


def test_a_worn_worker_that_dies_by_itself_needs_no_order(crew: Crew) -> None:
    crew.hear("worn", 1)
    serving(crew, 3)
    assert crew.orders((2, 3)) == Orders()
    assert crew.orders((2,)) == Orders(start=1)


def test_a_worker_that_dies_while_another_leaves_is_replaced(crew: Crew) -> None:
    crew.hear("worn", 1)
    serving(crew, 3)
    assert crew.orders((1, 2, 3)) == Orders(retire=(1,))
    assert crew.orders((1, 3)) == Orders(start=1)


def test_a_crew_that_retires_starts_nobody_and_tells_each_once(crew: Crew) -> None:
    crew.hear("worn", 1)
    crew.retires = True
    assert crew.orders((1, 2)) == Orders(retire=(1, 2))
    assert crew.orders((1,)) == Orders()
    # One that was forked just before.
    assert crew.orders((1, 5)) == Orders(retire=(5,))


def test_words_come_whole_and_a_full_pipe_is_no_wait() -> None:
    pipe = WordPipe()
    assert pipe.heard() == []
    assert pipe.say("serving")
    assert pipe.say("worn")
    assert pipe.heard() == [("serving", os.getpid()), ("worn", os.getpid())]
    while pipe.say("worn"):
        pass
    assert {word for word, _ in pipe.heard()} == {"worn"}
    assert pipe.say("serving")
    pipe.close()
