"""Calendar windows follow each other without a gap, in every zone, whatever its clocks do."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.limits.values import Window
from tidegate.limits.windows import bounds, zone_exists

# Clocks set at midnight, over midnight, by half an hour, by a day; offsets of a quarter of an hour, and of seconds.
ZONES = (
    None,
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "America/St_Johns",
    "America/Toronto",
    "Africa/Cairo",
    "Africa/Monrovia",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Antarctica/Troll",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
)
WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "week", "month")
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC).timestamp(), datetime(2100, 1, 1, tzinfo=UTC).timestamp()


def local(zone: str, *moment: int, fold: int = 0) -> float:
    return datetime(*moment, fold=fold, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type,misc]


def shown(window: Window, zone: str, now: float) -> list[str]:
    """Start and end by the zone's own clocks."""
    return [datetime.fromtimestamp(at, ZoneInfo(zone)).isoformat(" ") for at in bounds(window, zone, now)]


@given(st.sampled_from(WINDOWS), st.sampled_from(ZONES), st.floats(FIRST, LAST))
@example("day", "America/St_Johns", local("America/St_Johns", 2009, 10, 31, 23, 30, fold=1))
@example("day", "Pacific/Apia", local("Pacific/Apia", 2011, 12, 29, 12))
@example("day", "America/Toronto", local("America/Toronto", 1919, 3, 31, 0, 30))
@example("hour", "Australia/Lord_Howe", local("Australia/Lord_Howe", 2024, 4, 7, 1, 45, fold=1))
@example("month", "Asia/Beirut", local("Asia/Beirut", 2024, 3, 31, 0, 30))
def test_a_moment_is_in_its_window_and_the_windows_touch(window: Window, zone: str | None, now: float) -> None:
    start, end = bounds(window, zone, now)
    assert start <= now < end
    assert bounds(window, zone, start) == (start, end)
    assert bounds(window, zone, end - 1) == (start, end)
    assert bounds(window, zone, start - 1)[1] == start
    assert bounds(window, zone, end)[0] == end


@given(st.sampled_from(ZONES), st.floats(FIRST, LAST))
def test_a_day_begins_at_the_first_moment_of_its_date(zone: str | None, now: float) -> None:
    start, _ = bounds("day", zone, now)
    at = ZoneInfo(zone or "UTC")
    assert datetime.fromtimestamp(start - 1, at).date() < datetime.fromtimestamp(start, at).date()


@given(st.sampled_from(ZONES), st.floats(FIRST, LAST))
def test_weeks_and_months_begin_where_a_day_does(zone: str | None, now: float) -> None:
    for window in WINDOWS[3:]:
        start, end = bounds(window, zone, now)
        assert bounds("day", zone, start)[0] == start
        assert bounds("day", zone, end)[0] == end


@given(st.sampled_from(WINDOWS), st.floats(FIRST, LAST))
def test_no_zone_is_utc(window: Window, now: float) -> None:
    assert bounds(window, None, now) == bounds(window, "UTC", now)


def test_windows_are_the_calendar_s() -> None:
    now = local("Europe/Berlin", 2026, 11, 22, 15, 44, 30)
    hour = ["2026-11-22 15:00:00+01:00", "2026-11-22 16:00:00+01:00"]
    assert shown("minute", "Europe/Berlin", now)[0] == "2026-11-22 15:44:00+01:00"
    assert shown("hour", "Europe/Berlin", now) == hour
    assert shown("day", "Europe/Berlin", now) == ["2026-11-22 00:00:00+01:00", "2026-11-23 00:00:00+01:00"]
    assert shown("week", "Europe/Berlin", now) == ["2026-11-16 00:00:00+01:00", "2026-11-23 00:00:00+01:00"]
    assert shown("month", "Europe/Berlin", now) == ["2026-11-01 00:00:00+01:00", "2026-12-01 00:00:00+01:00"]
    assert shown("hour", "Asia/Kathmandu", 0)[0] == "1970-01-01 05:00:00+05:30"


def test_a_day_is_as_long_as_its_clocks_make_it() -> None:
    def hours(zone: str, *day: int) -> float:
        start, end = bounds("day", zone, local(zone, *day, 12))
        return (end - start) / 3600

    assert hours("Europe/Berlin", 2026, 3, 29) == 23
    assert hours("Europe/Berlin", 2026, 10, 25) == 25
    assert hours("Australia/Lord_Howe", 2024, 4, 7) == 24.5
    # Midnight was skipped, came twice, and was passed twice.
    assert hours("America/Sao_Paulo", 2018, 11, 4) == 23
    assert hours("America/Havana", 2024, 11, 3) == 25
    assert hours("America/St_Johns", 2009, 11, 1) == 25
    # A date that never was: the day before it ends where the day after it begins.
    assert shown("day", "Pacific/Apia", local("Pacific/Apia", 2011, 12, 29, 12))[1] == "2011-12-31 00:00:00+14:00"


def test_an_hour_that_comes_twice_is_two_windows() -> None:
    first, second = (
        bounds("hour", "Europe/Berlin", local("Europe/Berlin", 2026, 10, 25, 2, 30, fold=f)) for f in (0, 1)
    )
    assert first[1] == second[0]
    assert second[1] - second[0] == first[1] - first[0] == 3600


def test_a_total_never_ends() -> None:
    assert bounds("total", "Europe/Berlin", 1e9) == (0, 0)


def test_a_zone_that_is_not_there_is_told() -> None:
    assert zone_exists("Europe/Berlin")
    assert zone_exists("UTC")
    for name in ("Mars/Phobos", "", "Europe", "../etc/passwd", "/etc/passwd", "localtime", "right/UTC", "a\0b"):
        assert not zone_exists(name), name
    with pytest.raises(ZoneInfoNotFoundError):
        bounds("day", "Mars/Phobos", 0)
