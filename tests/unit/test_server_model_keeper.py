from itertools import accumulate

from tidegate.server.model_keeper import Backoff


def test_a_model_that_keeps_ending_is_started_ever_later() -> None:
    backoff = Backoff()
    first = backoff.next(None, 0.1)
    delays = list(accumulate(range(8), lambda last, _: backoff.next(last, 0.1), initial=first))
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_minute_of_life_begins_anew() -> None:
    assert Backoff().next(30, 59.9) == 30
    assert Backoff().next(30, 60) == 0.5
