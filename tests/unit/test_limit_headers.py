"""What an answer says of its limits, to the letter.

Sources: draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4 (lists of strings with parameters, RFC 9651);
OpenAI's "Rate limits in headers".
"""

import re

import pytest

from tests.unit.limits import a_limit
from tidegate.admission.checks import Reserve, check_of
from tidegate.admission.headers import duration, limit_headers
from tidegate.admission.steps import refusal_of
from tidegate.admission.store import Reply
from tidegate.limits.values import MOST, Limit, Matched

NOW_S = 1_800_000_000
DAY_S = 86_400

# RFC 9651: a list of strings, each with parameters whose values are integers of at most 15 digits, or strings.
_ITEM = r'"[ !#-\[\]-~]*"(?:;[a-z]+=(?:-?\d{1,15}|"[ !#-\[\]-~]*"))*'
_LIST = re.compile(rf"{_ITEM}(?:, {_ITEM})*")


def headers_of(*limits: tuple[Limit, int]) -> dict[str, str]:
    matched = [Matched(limit, str(n)) for n, (limit, _) in enumerate(limits)]
    checks = [check_of(one, Reserve(tokens=1, cost=1), NOW_S) for one in matched]
    return limit_headers(matched, checks, [used for _, used in limits], NOW_S * 1000)


def test_a_rate_is_told_in_the_drafts_form_and_in_openais() -> None:
    assert headers_of((a_limit(amount=100), 60)) == {
        "RateLimit-Policy": '"key-requests-minute";q=100;w=60',
        "RateLimit": '"key-requests-minute";r=40;t=60',
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "40",
        "x-ratelimit-reset-requests": "1m0s",
    }


def test_tokens_and_slots_name_their_unit_and_money_is_told_to_nobody() -> None:
    ends_in_s = DAY_S - NOW_S % DAY_S
    tokens = a_limit(scope="workspace", meter="tokens", window="day", amount=5_000)
    headers = headers_of(
        (a_limit(meter="concurrency", window=None, amount=4), 1),
        (a_limit(meter="cost", window="month", amount=10**9), 10**8),
        (tokens, 5_500),
    )
    assert headers["RateLimit-Policy"] == (
        '"key-concurrency";q=4;qu="concurrent-requests", "workspace-tokens-day";q=5000;w=86400;qu="tokens"'
    )
    assert headers["RateLimit"] == f'"key-concurrency";r=3, "workspace-tokens-day";r=0;t={ends_in_s}'
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == duration(ends_in_s)
    assert "cost" not in str(headers)
    assert "x-ratelimit-limit-requests" not in headers


def test_of_several_limits_openais_headers_tell_the_tightest() -> None:
    headers = headers_of((a_limit(amount=1000), 10), (a_limit(scope="user", amount=10), 9), (a_limit(amount=50), 0))
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["RateLimit"].count(";r=") == 3


@pytest.mark.parametrize("window", ["minute", "hour", "day", "week", "month", "total"])
@pytest.mark.parametrize("amount", [1, 10**15 - 1, MOST])
def test_every_field_is_a_structured_one(window: str, amount: int) -> None:
    for meter, scope in (("requests", "key"), ("tokens", "end_user")):
        headers = headers_of((a_limit(meter=meter, scope=scope, window=window, amount=amount), 0))
        for name in ("RateLimit", "RateLimit-Policy"):
            assert _LIST.fullmatch(headers[name]), headers[name]
        assert re.fullmatch(r"(\d+h)?(\d+m)?\d+(ms|s)", headers[f"x-ratelimit-reset-{meter}"])


def test_a_limit_without_an_end_has_no_window_and_no_reset() -> None:
    headers = headers_of((a_limit(window="total", amount=7), 3))
    assert headers["RateLimit-Policy"] == '"key-requests-total";q=7'
    assert headers["RateLimit"] == '"key-requests-total";r=4'
    assert headers["x-ratelimit-reset-requests"] == "0s"


def test_nothing_is_told_where_there_is_nothing_but_money() -> None:
    assert headers_of((a_limit(meter="cost", window="total"), 0)) == {}


def test_durations_are_openais() -> None:
    written = [duration(seconds) for seconds in (0, 0.0001, 0.25, 1, 59.2, 60, 360, 3600, 90_000)]
    assert written == ["0s", "1ms", "250ms", "1s", "1m0s", "1m0s", "6m0s", "1h0m0s", "25h0m0s"]


def test_a_refusal_tells_the_state_of_all_its_limits() -> None:
    limits = [Matched(a_limit(amount=5), "a"), Matched(a_limit(scope="user", amount=9), "b")]
    checks = [check_of(one, Reserve(), NOW_S) for one in limits]
    error = refusal_of(limits, checks, Reply(said="refused", now_ms=0, at=0, retry_ms=12_001, used=(5, 5)))
    assert error.headers["RateLimit"] == '"key-requests-minute";r=0;t=60, "user-requests-minute";r=4;t=60'
    assert (error.headers["Retry-After"], error.headers["retry-after-ms"]) == ("13", "12001")
