"""How a request's end is told: one word for each way to end, one entry whatever happened, the most it may cost."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tests.unit.samples import Store, a_call, a_plan, an_exchange
from tidegate.admission.gate import Admitted
from tidegate.errors import (
    AnswerCut,
    Draining,
    InternalError,
    InvalidRequest,
    Overloaded,
    RateLimitExceeded,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from tidegate.inference.client import Client, ClientGone
from tidegate.inference.estimate import reserve_cost
from tidegate.inference.exchange import Exchange
from tidegate.inference.gateway import Gateway
from tidegate.inference.settlement import outcome_of, reserved
from tidegate.inference.wire import parse_chat
from tidegate.ledger.entry import NO_USAGE, Entry, utc_now
from tidegate.ledger.journal import Settled, read_records, segment_path
from tidegate.ledger.reservation import Ledger, Reservation

REFUSED = UpstreamRefused("no", upstream="one", refused_status=422, refused_code="its_code", param=None)
ENDINGS: list[tuple[BaseException | None, str, int | None, str | None]] = [
    (None, "completed", 200, None),
    (ClientGone(), "client_disconnected", 499, None),
    (asyncio.CancelledError(), "interrupted", 200, "draining"),
    (UpstreamTimeout("idle", 5, upstream="one"), "timed_out", 504, "upstream_timeout"),
    (UpstreamError("died", upstream="one"), "upstream_failed", 502, "upstream_error"),
    (REFUSED, "upstream_failed", 422, "its_code"),
    (Overloaded("full"), "rejected", 503, "overloaded"),
    (Unavailable("down"), "rejected", 503, "unavailable"),
    (Draining("leaving"), "rejected", 503, "draining"),
    (RateLimitExceeded("an upstream's own"), "rejected", 429, "rate_limit_exceeded"),
    (AnswerCut("no room"), "interrupted", 429, "insufficient_quota"),
    (InternalError("ours"), "interrupted", 500, "internal_error"),
    (InvalidRequest("wrong"), "interrupted", 400, "invalid_request"),
    (ZeroDivisionError(), "interrupted", 500, "internal_error"),
    (KeyboardInterrupt(), "interrupted", 500, "internal_error"),
]


@dataclass
class Sent:
    """What of a client the settlement looks at."""

    status: int | None = None
    is_complete: bool = False
    is_gone: bool = False
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def a_client(*, is_gone: bool = False, is_complete: bool = False) -> Client:
    return cast("Client", Sent(is_gone=is_gone, is_complete=is_complete))


@dataclass
class LetIn:
    """A request that no limit met."""

    headers: dict[str, str] = field(default_factory=dict)
    came: Entry | None = None

    def came_to(self, entry: Entry) -> None:
        self.came = entry


@contextmanager
def a_gateway(root: Path) -> Iterator[Gateway]:
    @dataclass
    class OnlyALedger:
        ledger: Ledger
        observed: None = None

    ledger = Ledger(root, Store())
    yield cast("Gateway", OnlyALedger(ledger))
    ledger._journal.close(drained=True)


def told(status: int | None = None, **fields: Any) -> Exchange:
    return an_exchange(client=cast("Client", Sent(status)), **fields)


def settled_in(gateway: Gateway) -> list[Entry]:
    journal = gateway.ledger._journal
    records = read_records(segment_path(journal.directory, 1), 0, 2**20).records
    return [record.entry for record in records if isinstance(record, Settled)]


def run(gateway: Gateway, exchange: Exchange, error: BaseException | None, *, attempts: int = 0) -> Reservation:
    plan = a_plan()
    with reserved(gateway, exchange, plan, cast("Admitted", LetIn()), None) as reservation:
        for _ in range(attempts):
            reservation.begin_attempt(plan.attempts[0], input_tokens=1, started_at=utc_now())
            reservation.end_attempt(
                outcome="completed", usage=NO_USAGE, status=None, upstream_request_id=None, ended_at=utc_now()
            )
        if error is not None:
            raise error
    return reservation


@pytest.mark.parametrize(("error", "outcome", "status", "code"), ENDINGS)
def test_every_way_to_end_has_its_word_and_leaves_one_entry(
    tmp_path: Path, error: BaseException | None, outcome: str, status: int | None, code: str | None
) -> None:
    with a_gateway(tmp_path) as gateway:
        opened = error is None or isinstance(error, asyncio.CancelledError)
        exchange = told(200 if opened else None)
        if error is None:
            run(gateway, exchange, None)
        else:
            with pytest.raises(type(error)):
                run(gateway, exchange, error)
        [entry] = settled_in(gateway)
        assert exchange.context.entry == entry
        assert (entry.outcome, entry.status, entry.error_code) == (outcome, status, code)
        assert gateway.ledger.open_entries == 0
        assert outcome_of(error, a_client()) == outcome


def test_a_cancellation_of_one_whose_client_is_gone_is_a_hang_up() -> None:
    assert outcome_of(asyncio.CancelledError(), a_client(is_gone=True)) == "client_disconnected"
    assert outcome_of(asyncio.CancelledError(), a_client()) == "interrupted"
    assert outcome_of(UpstreamError("died", upstream="one"), a_client(is_gone=True)) == "upstream_failed"


def test_what_breaks_behind_the_answers_own_end_broke_nothing() -> None:
    for error in (UpstreamError("died", upstream="one"), UpstreamTimeout("total", 5, upstream="one"), ClientGone()):
        assert outcome_of(error, a_client(is_complete=True)) == "completed"


def test_after_the_first_byte_the_status_is_what_was_sent(tmp_path: Path) -> None:
    with a_gateway(tmp_path) as gateway:
        with pytest.raises(UpstreamError):
            run(gateway, told(200), UpstreamError("died", upstream="one"), attempts=1)
        [entry] = settled_in(gateway)
        assert (entry.status, entry.error_code, entry.outcome) == (200, "upstream_error", "upstream_failed")


@pytest.mark.parametrize("status", [None, 200], ids=["collected", "streamed"])
def test_an_answer_that_was_cut_was_interrupted_whatever_was_sent_of_it(tmp_path: Path, status: int | None) -> None:
    with a_gateway(tmp_path) as gateway:
        with pytest.raises(AnswerCut):
            run(gateway, told(status), AnswerCut("no room"), attempts=1)
        [entry] = settled_in(gateway)
        assert (entry.status, entry.error_code) == (status or 429, "insufficient_quota")
        assert entry.outcome == "interrupted"


def test_a_cancelled_request_that_was_sent_nothing_was_refused_as_draining(tmp_path: Path) -> None:
    with a_gateway(tmp_path) as gateway:
        with pytest.raises(asyncio.CancelledError):
            run(gateway, told(None), asyncio.CancelledError())
        assert (settled_in(gateway)[0].status, settled_in(gateway)[0].error_code) == (503, "draining")


def test_one_that_had_a_slot_before_is_not_rejected(tmp_path: Path) -> None:
    with a_gateway(tmp_path) as gateway:
        with pytest.raises(Overloaded):
            run(gateway, told(), Overloaded("no second slot"), attempts=1)
        assert settled_in(gateway)[0].outcome == "upstream_failed"


def test_the_entry_says_who_asked_for_what_and_what_was_learnt(tmp_path: Path) -> None:
    with a_gateway(tmp_path) as gateway:
        exchange = told(200, stream=True)
        exchange.progress.upstream, exchange.progress.finish_reason = "one", "stop"
        exchange.progress.queue_s, exchange.progress.ttft_s = 0.0, 0.0126
        reservation = run(gateway, exchange, None)
        [entry] = settled_in(gateway)
        principal, context = exchange.principal, exchange.context
        assert (entry.workspace_id, entry.key_id, entry.user_id) == (
            principal.workspace_id,
            principal.key_id,
            principal.user_id,
        )
        assert (entry.request_id, entry.client_address, entry.user_agent) == ("r-1", "::1", "curl")
        assert (entry.end_user, entry.session_id, entry.tags) == ("e", "s", {"a": "b"})
        assert (entry.protocol, entry.model, entry.streamed, entry.upstream) == ("chat", "m", True, "one")
        assert (entry.finish_reason, entry.queue_ms, entry.ttft_ms) == ("stop", 0, 13)
        assert entry.started_at == context.received_at
        entry_id = str(reservation.opened.entry_id).encode()
        assert exchange.client.headers == [(b"x-tidegate-entry-id", entry_id), (b"x-tidegate-model", b"m")]
        assert entry.entry_id == reservation.opened.entry_id


def test_an_error_carries_the_entrys_id(tmp_path: Path) -> None:
    with a_gateway(tmp_path) as gateway:
        with pytest.raises(Overloaded) as caught:
            run(gateway, told(), Overloaded("full", headers={"Retry-After": "1"}))
        entry_id = str(settled_in(gateway)[0].entry_id)
        assert caught.value.headers == {"Retry-After": "1", "X-Tidegate-Entry-ID": entry_id}


PRICE = {"input": "1", "output": "10"}


def test_a_reservation_is_the_input_at_its_bytes_and_the_output_that_was_asked() -> None:
    plan = a_plan(price=PRICE, max_output_tokens=1000, reserve_output_tokens=100)
    for asked, n, output in [(None, 1, 100), (50, 1, 50), (5000, 1, 1000), (50, 3, 150), (None, 2, 200)]:
        call = a_call(**({"max_tokens": asked} if asked else {}), n=n)
        expected = (Decimal(len(call.body) + 16) + 10 * output) / 1_000_000
        assert reserve_cost(call, plan) == expected
    unbounded = a_plan(price=PRICE, reserve_output_tokens=100)
    call = a_call(max_completion_tokens=5000)
    assert reserve_cost(call, unbounded) == (Decimal(len(call.body) + 16) + 50_000) / 1_000_000


def test_a_reservation_holds_for_the_dearest_attempt_and_none_where_one_is_unpriced() -> None:
    assert reserve_cost(a_call(), a_plan("one/nobody-knows-it", "two/gpt-4.1")) is None
    assert reserve_cost(a_call(), a_plan("one/nobody-knows-it")) is None
    dear, cheap = a_plan("one/gpt-4.1"), a_plan("one/gpt-4.1-nano")
    both = reserve_cost(a_call(), a_plan("one/gpt-4.1-nano", "two/gpt-4.1"))
    costs = [reserve_cost(a_call(), plan) for plan in (dear, cheap)]
    assert both == costs[0]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0] > costs[1]


def test_a_free_model_is_reserved_at_zero_which_is_a_cost() -> None:
    assert reserve_cost(a_call(), a_plan(price={"input": "0", "output": "0"})) == Decimal(0)


@settings(deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=30), min_size=1, max_size=5), st.integers(1, 10**400))
def test_a_reservation_never_holds_less_than_a_token_a_byte(texts: list[str], asked: int) -> None:
    call = a_call(messages=[{"role": "user", "content": text} for text in texts], max_tokens=asked)
    cost = reserve_cost(parse_chat(call.body), a_plan(price=PRICE, max_output_tokens=100))
    assert cost is not None
    assert cost * 1_000_000 >= sum(len(text.encode()) for text in texts) + 16 * len(texts) + 10 * min(asked, 100)
