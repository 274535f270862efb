"""What the road reads of a request's headers: its deadline, whom it is for, and what goes on to an upstream."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import a_call, an_exchange
from tidegate.errors import InvalidRequest
from tidegate.inference.exchange import RoadHeaders

DAY_MS = 24 * 3600 * 1000


def headers(**values: str | bytes) -> RoadHeaders:
    """Headers by their names, `_` for `-`."""
    return RoadHeaders.of(
        (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in values.items()
    )


@pytest.mark.parametrize(("written", "seconds"), [("1", 0.001), ("2500", 2.5), ("000007", 0.007), (str(DAY_MS), 86400)])
def test_a_deadline_counts_from_the_requests_arrival(written: str, seconds: float) -> None:
    assert headers(x_tidegate_deadline_ms=written).deadline_at(100.0) == pytest.approx(100 + seconds)


def test_without_the_header_there_is_no_deadline() -> None:
    assert headers().deadline_at(100.0) is None
    assert an_exchange().remaining_s() is None


@pytest.mark.parametrize(
    "written",
    ["", "0", "-1", "1.5", "1e3", " 5", "5 ", "abc", "²", str(DAY_MS + 1), "9" * 5000, "0" * 11 + "1" + "9" * 5000],
)
def test_a_deadline_that_is_none_is_refused_by_its_name(written: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        headers(x_tidegate_deadline_ms=written).deadline_at(0)
    assert (caught.value.http_status, caught.value.param) == (400, "X-Tidegate-Deadline-Ms")


@given(st.binary(max_size=20))
def test_whatever_stands_in_the_header_it_is_a_deadline_or_refused(written: bytes) -> None:
    try:
        at = headers(x_tidegate_deadline_ms=written).deadline_at(0)
    except InvalidRequest:
        return
    assert at is not None
    assert 0 < at <= DAY_MS / 1000


def test_what_remains_is_never_under_zero() -> None:
    exchange = an_exchange(deadline_at=time.perf_counter() - 5)
    assert exchange.remaining_s() == 0
    exchange.deadline_at = time.perf_counter() + 100
    remaining = exchange.remaining_s()
    assert remaining is not None
    assert 90 < remaining <= 100


def test_the_end_user_is_our_headers_then_the_configured_ones_then_the_bodys() -> None:
    configured = ("X-OpenWebUI-User-Id", "X-Other")
    call = a_call(user="body")
    every = headers(x_tidegate_end_user="ours", x_openwebui_user_id="first", x_other="second")
    assert every.attribution(call, configured).end_user == "ours"
    assert headers(x_openwebui_user_id="first", x_other="second").attribution(call, configured).end_user == "first"
    assert headers(x_openwebui_user_id="", x_other="second").attribution(call, configured).end_user == "second"
    assert headers(x_openwebui_user_id="first").attribution(call, ()).end_user == "body"
    assert headers().attribution(a_call(safety_identifier="safe", user="body"), ()).end_user == "safe"
    assert headers().attribution(a_call(), configured).end_user is None


def test_a_session_is_taken_and_a_label_too_long_is_refused_by_its_name() -> None:
    assert headers(x_tidegate_session="s").attribution(a_call(), ()).session_id == "s"
    assert headers(x_tidegate_session="s" * 256).attribution(a_call(), ()).session_id == "s" * 256
    for name in ("x_tidegate_session", "x_tidegate_end_user", "x_other"):
        with pytest.raises(InvalidRequest) as caught:
            headers(**{name: "s" * 257}).attribution(a_call(), ("X-Other",))
        assert caught.value.param == name.replace("_", "-")


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        ("", {}),
        ("team=a", {"team": "a"}),
        ("team=a,env=prod", {"team": "a", "env": "prod"}),
        (" team = a , env = , ,", {"team": "a", "env": ""}),
        ("url=http://x?a=b", {"url": "http://x?a=b"}),
        ("a=1,a=2", {"a": "2"}),
        (",".join(f"k{n}=v" for n in range(16)), {f"k{n}": "v" for n in range(16)}),
        (f"{'k' * 64}={'v' * 256}", {"k" * 64: "v" * 256}),
        ("é=ü", {"é": "ü"}),
    ],
)
def test_tags_are_pairs(written: str, tags: dict[str, str]) -> None:
    found = headers(x_tidegate_tags=written.encode("latin-1")).attribution(a_call(), ())
    assert found.tags == tags


@pytest.mark.parametrize(
    "written",
    [
        "team",
        "=a",
        "a=b,c",
        ",".join(f"k{n}=v" for n in range(17)),
        f"{'k' * 65}=v",
        f"k={'v' * 257}",
        "a\x00=b",
        "a=x\ny",
    ],
)
def test_what_is_no_tag_is_refused(written: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        headers(x_tidegate_tags=written).attribution(a_call(), ())
    assert caught.value.param == "X-Tidegate-Tags"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(
            st.characters(max_codepoint=0xFF, exclude_characters="=,", exclude_categories=["Cc"]),
            min_size=1,
            max_size=5,
        )
        .map(str.strip)
        .filter(bool),
        st.text(st.characters(max_codepoint=0xFF, exclude_characters=",", exclude_categories=["Cc"]), max_size=5).map(
            str.strip
        ),
        max_size=16,
    )
)
def test_tags_come_back_as_they_were_written(tags: dict[str, str]) -> None:
    written = ", ".join(f"{key}={value}" for key, value in tags.items()).encode("latin-1")
    assert headers(x_tidegate_tags=written).attribution(a_call(), ()).tags == tags


@given(st.binary(max_size=40))
def test_whatever_stands_in_the_tags_they_are_bounded_pairs_or_refused(written: bytes) -> None:
    try:
        tags = headers(x_tidegate_tags=written).attribution(a_call(), ()).tags
    except InvalidRequest:
        return
    assert len(tags) <= 16
    assert all(0 < len(key) <= 64 and len(value) <= 256 for key, value in tags.items())


def test_an_upstream_is_sent_what_is_on_the_list_and_nothing_else() -> None:
    came = headers(
        authorization="Bearer secret",
        cookie="secret",
        x_api_key="secret",
        proxy_authorization="secret",
        host="gateway",
        openai_beta="assistants=v2",
        traceparent="00-1",
        anthropic_version="2023",
        anthropic_beta="b",
        x_request_id="not-kept!",
        x_custom="c",
        accept="text/html",
    )
    base = {
        b"openai-beta": b"assistants=v2",
        b"traceparent": b"00-1",
        b"anthropic-version": b"2023",
        b"anthropic-beta": b"b",
    }
    forwarded = came.forwarded("r-1")
    assert dict(forwarded) == {**base, b"x-request-id": b"r-1"}
    forwarded = came.forwarded("r-1", ("x-custom", "x-absent", "openai-beta"))
    assert dict(forwarded) == {**base, b"x-request-id": b"r-1", b"x-custom": b"c"}
    assert len(forwarded) == len(dict(forwarded)), "none twice"


def test_how_long_it_took_counts_from_the_requests_arrival() -> None:
    exchange = an_exchange()
    exchange.context.started -= 5
    assert 5 <= exchange.elapsed_s() < 300
