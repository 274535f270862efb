"""What is asked of the response cache: the header's form, what is repeatable, and what makes two requests one."""

import json
import time
import uuid
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import a_call, a_plan, an_exchange
from tidegate.errors import InvalidRequest
from tidegate.inference.caching import Caching, caching_of, is_repeatable
from tidegate.inference.joining import Flights
from tidegate.inference.kept_answers import AnswerKey, KeptAnswer
from tidegate.inference.wire import ChatCall, parse_chat
from tidegate.ledger.entry import Tokens
from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import CatalogueError, load_catalogue
from tidegate.routing.plan import Plan
from tidegate.settings import Settings

PRINCIPAL = an_exchange().principal
A_BODY = b'{"choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}'
A_FUNCTION = {"type": "function", "function": {"name": "f"}}


def asked(
    written: str | None = None, *, plan: Plan | None = None, headers: dict[bytes, bytes] | None = None, **fields: Any
) -> Caching | None:
    headers = dict(headers or {})
    if written is not None:
        headers[b"x-tidegate-cache"] = written.encode("latin-1")
    return caching_of(headers, a_call(**fields), PRINCIPAL, plan or a_plan())


def digest(call: ChatCall | None = None, *, plan: Plan | None = None, **headers: str) -> str:
    said = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    said[b"x-tidegate-cache"] = b"60s, force"
    caching = caching_of(said, call or a_call(), PRINCIPAL, plan or a_plan())
    assert caching is not None
    assert caching.key is not None
    assert caching.key.workspace_id == PRINCIPAL.workspace_id
    return caching.key.digest


@pytest.mark.parametrize(
    ("written", "ttl_s"),
    [("1s", 1), ("60s", 60), (" 60S ", 60), ("5m", 300), ("24h", 86400), ("86400s", 86400), ("007s", 7)],
)
def test_the_header_says_for_how_long(written: str, ttl_s: int) -> None:
    caching = asked(written, temperature=0)
    assert caching is not None
    assert caching.ttl_s == ttl_s
    assert caching.key is not None


@pytest.mark.parametrize("written", ["60s, force", "60s,force", "1m , FORCE"])
def test_what_is_not_repeatable_has_a_key_only_where_it_is_forced(written: str) -> None:
    forced, unforced = asked(written), asked("60s")
    assert forced is not None
    assert forced.key is not None
    assert unforced is not None
    assert unforced.key is None


def test_off_refuses_the_models_default_and_a_time_goes_before_it() -> None:
    plan = a_plan(cache={"ttl_s": 30})
    for written, ttl_s in ((None, 30), ("5s", 5)):
        caching = asked(written, plan=plan, temperature=0)
        assert caching is not None
        assert caching.ttl_s == ttl_s
    assert asked("off", plan=plan, temperature=0) is None
    assert asked(" OFF ", plan=plan, temperature=0) is None
    assert asked(plan=plan) is None
    assert asked("off") is None
    assert asked(temperature=0) is None


@pytest.mark.parametrize(
    "written",
    [
        "",
        "60",
        "s",
        "0s",
        "0h",
        "1441m",
        "25h",
        "86401s",
        "1.5s",
        "-1s",
        "60s,",
        "60s;force",
        "force",
        "60s, off",
        "²s",
    ],
)
def test_another_form_is_refused_by_its_name_and_told_the_right_one(written: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(written)
    assert caught.value.param == "X-Tidegate-Cache"
    assert all(form in caught.value.message for form in ('"60s"', "force", "off", "24h"))


@given(st.binary(max_size=12))
def test_whatever_stands_there_it_is_a_time_or_refused(written: bytes) -> None:
    try:
        caching = caching_of({b"x-tidegate-cache": written}, a_call(), PRINCIPAL, a_plan())
    except InvalidRequest:
        return
    assert caching is None or 1 <= caching.ttl_s <= 86400


@pytest.mark.parametrize(
    ("fields", "repeatable"),
    [
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 1e-9}, False),
        ({"temperature": 1, "seed": 7}, True),
        ({"seed": 0}, True),
        ({"seed": None}, False),
        ({"top_p": 0}, False),
        ({"temperature": 0, "tools": [A_FUNCTION]}, True),
        ({"temperature": 0, "tools": []}, True),
        ({"temperature": 0, "tools": None}, True),
        ({"temperature": 0, "tools": [A_FUNCTION, {"type": "web_search"}]}, False),
        ({"temperature": 0, "web_search_options": {}}, False),
        ({"temperature": 0, "web_search_options": None}, True),
        ({"temperature": 0, "store": True}, False),
        ({"temperature": 0, "store": False}, True),
    ],
)
def test_repeatable_is_what_says_so_and_whose_answer_is_all_there_is_to_it(
    fields: dict[str, Any], repeatable: bool
) -> None:
    assert is_repeatable(a_call(**fields)) is repeatable


def test_the_form_of_the_answer_and_whom_it_is_for_are_not_in_the_key() -> None:
    plain = digest()
    for fields in (
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "u"},
        {"safety_identifier": "s"},
    ):
        assert digest(a_call(**fields)) == plain
    assert digest(x_request_id="1", traceparent="00-1-2-01", x_tidegate_end_user="e", authorization="Bearer x") == plain


def test_everything_else_is() -> None:
    plan = a_plan()
    [attempt] = plan.attempts
    upstream = replace(attempt.upstream, forward_headers=("x-org",))
    forwarding = replace(plan, attempts=(replace(attempt, upstream=upstream),))
    elsewhere = replace(attempt, upstream=replace(attempt.upstream, base_url="http://127.0.0.1:2/v1"))
    digests = [
        digest(),
        digest(a_call(model="n")),
        digest(a_call(temperature=0)),
        digest(a_call(temperature=0.5)),
        digest(a_call(seed=1)),
        digest(a_call(unknown={"a": [1, 2]})),
        digest(a_call(unknown={"a": [1, 2], "b": 1})),
        digest(a_call(n=2)),
        digest(a_call(messages=[{"role": "system", "content": "Hello"}])),
        digest(plan=replace(plan, name="other")),
        digest(plan=a_plan("one/other")),
        digest(plan=a_plan("one/m", "two/m")),
        digest(plan=replace(plan, attempts=(elsewhere,))),
        digest(openai_beta="a"),
        digest(openai_beta="b"),
        digest(anthropic_beta="a"),
        digest(anthropic_version="2023-06-01"),
        digest(plan=forwarding, x_org="one"),
        digest(plan=forwarding, x_org="two"),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(x_org="one") == digest()


def test_the_order_of_members_is_not_in_the_key_and_of_two_of_a_name_the_one_that_goes_on_is() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    turned = dict(reversed(body.items()))
    assert digest(parse_chat(json.dumps(body).encode())) == digest(parse_chat(json.dumps(turned).encode()))
    twice = json.dumps(body)[:-1].encode() + b', "temperature": 0.7}'
    assert digest(parse_chat(twice)) == digest(a_call(temperature=0.7))


texts = st.text(max_size=6)


@given(st.dictionaries(texts, texts, max_size=3), st.dictionaries(texts, texts, max_size=3))
def test_two_keys_are_equal_where_two_bodies_say_the_same(one: dict[str, str], two: dict[str, str]) -> None:
    assert (digest(a_call(metadata=one)) == digest(a_call(metadata=two))) == (json.dumps(one) == json.dumps(two))
    # Members' ends cannot be moved.
    assert (
        digest(a_call(**{"x-" + k: v for k, v in one.items()}))
        == digest(a_call(**{"x-" + k: v for k, v in two.items()}))
    ) == (one == two)


def test_another_workspace_has_another_key() -> None:
    stranger = msgspec.structs.replace(PRINCIPAL, workspace_id=uuid.uuid4())
    said = {b"x-tidegate-cache": b"60s"}
    ours = caching_of(said, a_call(seed=1), PRINCIPAL, a_plan())
    theirs = caching_of(said, a_call(seed=1), stranger, a_plan())
    assert ours is not None
    assert theirs is not None
    assert ours.key != theirs.key


async def test_what_is_offered_is_there_for_who_comes_before_it_is_kept_and_one_flight_is_not_two() -> None:
    flights: Flights[AnswerKey, KeptAnswer] = Flights()
    key = AnswerKey(uuid.uuid4(), "d")
    streamed = Caching(60, key, flights=flights)
    streamed.offer(A_BODY, 1, Tokens(), None)
    assert streamed.flight is not None
    assert flights.landed(key) is streamed.kept
    streamed.flight.leave()
    assert flights.landed(key) is None
    flight, _ = flights.board(key)
    streamed = Caching(60, key, flights=flights)
    streamed.offer(A_BODY, 1, Tokens(), None)
    assert streamed.kept is not None
    assert streamed.flight is None
    flight.leave()
    assert len(flights) == 0


async def test_what_is_offered_goes_to_those_who_wait_where_it_is_worth_keeping_else_they_go_alone() -> None:
    for offered, keeps in ((A_BODY, True), (A_BODY.replace(b"stop", b"tool_calls"), False), (None, False)):
        flights: Flights[AnswerKey, KeptAnswer] = Flights()
        key = AnswerKey(uuid.uuid4(), "d")
        flight, _ = flights.board(key)
        caching = Caching(60, key, flights=flights, flight=flight)
        tokens = Tokens(input=3, cached_input=4, output=5, reasoning=6)
        began = time.time()
        caching.offer(offered, 1, tokens, None)
        if keeps:
            answer = await flight.follow(0)
            assert answer is caching.kept
            assert isinstance(answer, KeptAnswer)
            assert (answer.input_tokens, answer.output_tokens, answer.cost) == (7, 11, None)
            assert (answer.finish_reason, answer.made_at >= began) == ("stop", True)
        else:
            assert caching.kept is None
            # It is over: who comes now leads a flight of its own.
            assert len(flights) == 0
        flight.leave()
        assert len(flights) == 0


TEXT = """\
[upstreams.a]
provider = "echo"
[[models]]
name = "m"
attempts = ["a/m"]
{cache}
"""


def test_a_model_says_for_how_long_or_that_it_is_off() -> None:
    for written, ttl_s in (("", None), ('cache = "off"', None), ("cache = { ttl_s = 60 }", 60)):
        [model] = catalogue_of(written).models
        assert model.cache_ttl_s == ttl_s


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("cache = 60", "6: models.0.cache: must be a table"),
        ('cache = "on"', "6: models.0.cache: Input should be 'off'"),
        ("cache = {}", "6: models.0.cache.ttl_s: is missing"),
        ("cache = { ttl = 60 }", "6: models.0.cache.ttl: there is no such name; did you mean ttl_s?"),
        ("cache = { ttl_s = 0 }", "6: models.0.cache.ttl_s: Input should be greater than or equal to 1"),
        ("cache = { ttl_s = 86401 }", "6: models.0.cache.ttl_s: Input should be less than or equal to 86400"),
        ("cache = { ttl_s = true }", "6: models.0.cache.ttl_s: Input should be a valid integer"),
    ],
)
def test_a_cache_of_another_form_is_told_with_its_line(written: str, fault: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        catalogue_of(written)
    assert fault in [told.removeprefix("TIDEGATE_CONFIG_TOML:") for told in caught.value.faults]


def catalogue_of(cache: str) -> Catalogue:
    said = {"environment": "test", "data_dir": "unused", "config_toml": TEXT.format(cache=cache)}
    return load_catalogue(Settings.model_validate(said))
