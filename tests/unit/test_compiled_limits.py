"""Limits that are kept compiled: the same checks and headers, at every moment, as limits that are looked at anew."""

import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from tests.unit.limits import a_limit
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.admission.checks import Reserve, check_of
from tidegate.admission.compiled import Compiled
from tidegate.admission.headers import limit_headers
from tidegate.admission.store import Asked, whole
from tidegate.auth.principal import Principal
from tidegate.ledger.entry import Attribution
from tidegate.limits.matching import Met, WorkspaceLimits
from tidegate.limits.values import Limit, Matched, Meter, Window

CALLER = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=uuid.uuid4())
TRUSTED = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=uuid.uuid4(), trusts_attribution=True)
MIDNIGHT = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
# On both sides of the ends of an hour, a day, a week (a Monday begins a day later) and a month; and back again.
MOMENTS = tuple(MIDNIGHT + after_s for after_s in (-3601.5, -0.001, 0, 59, 86_400, -1, -40 * 86_400))
RESERVES = (Reserve(), Reserve(tokens=9, cost=None), Reserve(tokens=120, cost=700_000))
WINDOWS = ("minute", "hour", "day", "week", "month", "total")
METERS: tuple[Meter, ...] = ("requests", "tokens", "cost")


def met(limits: Sequence[Limit], principal: Principal = CALLER, end_user: str | None = None) -> tuple[Matched, ...]:
    return WorkspaceLimits(limits).caller(principal, Attribution(end_user=end_user), "gpt-4.1", ())


def every_limit() -> list[Limit]:
    limits = [a_limit(meter=meter, window=window) for meter in METERS for window in WINDOWS]
    limits += [a_limit(meter="tokens", window="day", zone="Asia/Kolkata"), a_limit(action="alert", window="hour")]
    return [*limits, a_limit(meter="concurrency", window=None)]


def test_checks_are_in_the_windows_of_their_moment_and_take_what_the_request_reserves() -> None:
    limits = met(every_limit())
    assert isinstance(limits, Met)
    for now_s in MOMENTS:
        for reserve in RESERVES:
            compiled = Compiled.of(limits, now_s)
            asked = whole(Asked("e", compiled.checks, takes=compiled.takes(reserve)))
            assert asked.checks == tuple(check_of(one, reserve, now_s) for one in limits)


@pytest.mark.parametrize("used", [0, 7, 60, 61])
def test_answers_tell_the_window_of_their_moment(used: int) -> None:
    limits = met(every_limit())
    for now_s in MOMENTS:
        anew = [check_of(one, Reserve(), now_s) for one in limits]
        figures, now_ms = [used] * len(limits), int(now_s * 1000)
        assert Compiled.of(limits, now_s).form.told(figures, now_ms) == limit_headers(limits, anew, figures, now_ms)


@pytest.mark.parametrize("window", ["minute", "hour"])
def test_answers_of_one_second_tell_what_is_so_in_each_moment_of_it(window: Window) -> None:
    limits = met([a_limit(window=window, amount=100), a_limit(meter="concurrency", window=None)])
    hour_ends_ms = (MIDNIGHT + 3600) * 1000
    form = Compiled.of(limits, MIDNIGHT).form
    checks = [check_of(one, Reserve(), MIDNIGHT) for one in limits]
    for before_ms in (90_001, 90_000, 89_999, 89_001, 89_000, 1_001, 1_000, 999, 500, 1, 0, -5):
        for used in ((7, 1), (0, 1), (8, 0)):
            now_ms = hour_ends_ms - before_ms
            assert form.told(used, now_ms) == limit_headers(limits, checks, used, now_ms)


def test_what_is_compiled_is_kept_until_the_first_of_its_windows_ends() -> None:
    limits = met([a_limit(), a_limit(window="day"), a_limit(meter="cost", window="month")])
    first = Compiled.of(limits, MIDNIGHT)
    assert Compiled.of(limits, MIDNIGHT + 86_399.9) is first
    second = Compiled.of(limits, MIDNIGHT + 86_400)
    assert second is not first
    assert Compiled.of(limits, MIDNIGHT + 86_401) is second
    endless = met([a_limit(), a_limit(window="total")])
    assert Compiled.of(endless, MIDNIGHT) is Compiled.of(endless, time.time())


def test_of_one_meter_the_tightest_is_told_with_its_own_window() -> None:
    limits = [
        Matched(a_limit(amount=1000), "a"),
        Matched(a_limit(window="day", amount=10), "b"),
        Matched(a_limit(window="total", amount=50), "c"),
    ]
    form = Compiled.of(limits, MIDNIGHT).form
    daily = form.told((10, 9, 0), (MIDNIGHT + 80_000) * 1000)
    assert [daily[f"x-ratelimit-{of}-requests"] for of in ("limit", "remaining", "reset")] == ["10", "1", "1h46m40s"]
    spent = form.told((2000, 9, 0), MIDNIGHT * 1000)
    assert [spent[f"x-ratelimit-{of}-requests"] for of in ("limit", "remaining", "reset")] == ["1000", "0", "1m0s"]


def test_one_end_user_is_not_judged_by_anothers_counter() -> None:
    of_all = WorkspaceLimits([a_limit(scope="end_user"), a_limit(window="day")])
    counters = []
    for name in ("zoe", "max"):
        limits = of_all.caller(TRUSTED, Attribution(end_user=name), "gpt-4.1", ())
        counters.append({check.counter for check in Compiled.of(limits, MIDNIGHT).checks})
    assert [len(each) for each in counters] == [2, 2]
    assert len(counters[0] & counters[1]) == 1
