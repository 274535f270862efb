"""Request ids and what else the edge takes from a request's head."""

from datetime import timedelta

import pytest

from tests.support.edge import scope_of
from tidegate.http.context import RequestContext, new_request_id


def context(**headers: str) -> RequestContext:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return RequestContext.of(scope_of(headers=raw))


@pytest.mark.parametrize("label", ["a", "A-z.0_9", "x" * 128, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
def test_request_id_of_the_caller_is_kept(label: str) -> None:
    assert context(x_request_id=label).request_id == label


@pytest.mark.parametrize(
    "label",
    [
        "",
        "x" * 129,
        "x" * 200,
        "a b",
        "a\r\nSet-Cookie: x=1",
        "a\n",
        "a\x00b",
        "é",
        '"quoted"',
        "a/b",
        "<script>",
        "a,b",
        "{}",
        "tg_abcdefgh_" + "S" * 43,
        "tgr_" + "S" * 43,
        "tgm_" + "S" * 43,
        "sk-proj-abcdefghijkl",
        "eyJhbGciOiJIUzI1NiJ9.e30.x",
    ],
)
def test_hostile_request_id_is_replaced(label: str) -> None:
    got = context(x_request_id=label).request_id
    assert got != label
    assert len(got) == 32
    assert got.isalnum()


def test_request_ids_made_are_unlike() -> None:
    assert len({new_request_id() for _ in range(1000)}) == 1000
    assert context().request_id != context().request_id


def test_user_agent_is_bounded() -> None:
    assert context(user_agent="é" * 600).user_agent == "é" * 512
    assert context().user_agent is None


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.1", 1), "192.0.2.1"),
        (("::ffff:192.0.2.1", 1), "192.0.2.1"),
        (("2001:db8::1", 1), "2001:db8::1"),
        (("x" * 500, 1), "x" * 64),
        (None, None),
    ],
)
def test_client_address_is_plain_and_bounded(client: tuple[str, int] | None, address: str | None) -> None:
    assert RequestContext.of(scope_of(client=client)).client_address == address


def test_a_requests_own_time_goes_on_from_its_beginning_whatever_is_done_to_the_clock() -> None:
    stepped = context()
    stepped.received_ns += 3_600_000_000_000
    assert stepped.received_at <= stepped.now() < stepped.received_at + timedelta(minutes=1)
