"""Calendar windows: when the hour, day, week or month that a moment belongs to began and ends, in a zone.

Pure. The windows of one kind and zone follow each other without a gap and without overlapping, whatever the zone's
clocks do, and each moment is in exactly one. A day, and so a week or a month, begins at the first moment whose local
date is its own: where the clocks skip midnight, when they do; where midnight comes twice, at the first. A date that a
zone skipped has no window. An hour is 60 minutes by the zone's clocks, and ends early where these are changed within
it.
"""

import functools
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from math import floor
from typing import Final, Literal
from zoneinfo import ZoneInfo

from tidegate.limits.values import Window

_Dated = Literal["day", "week", "month"]
_Calendar = Literal["minute", "hour", "day", "week", "month"]
_DAY_S: Final = 86_400
_SECONDS: Final = {"minute": 60, "hour": 3600, "day": _DAY_S, "week": 7 * _DAY_S}
# 1970-01-01 was a Thursday.
_EPOCH_WEEKDAY: Final = 3


def bounds(window: Window, zone: str | None, now: float) -> tuple[int, int]:
    """The window that `now` is in: its start, which belongs to it, and its end, which does not, in epoch seconds.

    A week starts on Monday. `total` is (0, 0): it neither begins nor ends. Raises `ZoneInfoNotFoundError` for a zone
    that this machine does not know.

    >>> bounds("day", "Europe/Berlin", 1_795_000_000)
    (1794956400, 1795042800)
    """
    if window == "total":
        return 0, 0
    moment = floor(now)
    if zone is None and window != "month":
        return _utc(window, moment)
    # 17 µs else: a calendar is asked once a minute.
    start, end = _found(window, zone, moment // 60 * 60)
    return (start, end) if start <= moment < end else _find(window, zone, moment)


def zone_exists(zone: str) -> bool:
    """Whether this machine knows the zone."""
    try:
        ZoneInfo(zone)
    # A folder of zones, or a name that leaves the folder.
    except (KeyError, ValueError, OSError):
        return False
    # What a machine calls its own time is another zone elsewhere; those under right/ count leap seconds.
    return not zone.startswith(("right/", "posix/")) and zone not in {"localtime", "posixrules", "Factory"}


def _utc(window: Literal["minute", "hour", "day", "week"], moment: int) -> tuple[int, int]:
    length = _SECONDS[window]
    shift = _EPOCH_WEEKDAY * _DAY_S if window == "week" else 0
    start = (moment + shift) // length * length - shift
    return start, start + length


def _find(window: _Calendar, zone: str | None, moment: int) -> tuple[int, int]:
    at = UTC if zone is None else ZoneInfo(zone)
    if window == "minute" or window == "hour":  # noqa: PLR1714 - mypy narrows by equality alone
        return _even(_SECONDS[window], at, moment)
    return _dated(window, at, moment)


_found = functools.lru_cache(maxsize=1024)(_find)


def _even(length: int, zone: tzinfo, moment: int) -> tuple[int, int]:
    offset = _offset(zone, moment)
    start = (moment + offset) // length * length - offset
    end = start + length
    if _offset(zone, start) != offset:
        start = _change(zone, start, moment)
    if _offset(zone, end - 1) != offset:
        end = _change(zone, moment, end - 1)
    return start, end


def _dated(window: _Dated, zone: tzinfo, moment: int) -> tuple[int, int]:
    first = _first_date(window, datetime.fromtimestamp(moment, zone).date())
    start = _begin(first, zone)
    while True:
        following = _following(window, first)
        end = _begin(following, zone)
        # Clocks that are set back over midnight show the old date again, in what is the new date's window already.
        if moment < end:
            return start, end
        first, start = following, end


def _first_date(window: _Dated, day: date) -> date:
    if window == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if window == "month" else day


def _following(window: _Dated, first: date) -> date:
    if window == "month":
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if window == "week" else 1)


def _begin(day: date, zone: tzinfo) -> int:
    """The first moment whose local date is `day` or later."""
    midnight = datetime.combine(day, time.min, zone)
    moment = int(midnight.timestamp())
    if datetime.fromtimestamp(moment, zone).replace(fold=0) == midnight:
        return moment
    # Midnight was skipped (PEP 495): the two readings of it stand around the moment when the clocks were set.
    return _change(zone, int(midnight.replace(fold=1).timestamp()), moment)


def _offset(zone: tzinfo, moment: int) -> int:
    offset = datetime.fromtimestamp(moment, zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def _change(zone: tzinfo, before: int, after: int) -> int:
    """The moment between the two from which the zone's offset is the one of `after`."""
    later = _offset(zone, after)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(zone, middle) == later:
            after = middle
        else:
            before = middle
    return after
