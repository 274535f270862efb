"""The client's side of a request: keep-alive in silence alone, comments between events alone, hang-ups seen at once."""

import asyncio
import itertools

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from tests.unit.virtual_time import in_virtual_time, now
from tidegate.errors import UpstreamError
from tidegate.inference.client import Client, ClientGone
from tidegate.inference.sse import COMMENT, EventSplitter, data_event

ERROR = UpstreamError("The upstream 'scripted' died.", upstream="scripted")


class Server:
    """A server as ASGI has it, which checks what it is told. `reads` is whether its client does."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, Message]] = []
        self.tried = 0
        self.reads = asyncio.Event()
        self.reads.set()
        self.closed = asyncio.Event()
        self.ended = False
        self._sending = False
        self._faults: list[str] = []

    def client(self) -> Client:
        return Client(self.receive, self.send, request_id="r-1")

    async def receive(self) -> Message:
        # A response that is complete reads as a disconnect, as uvicorn has it.
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._check(not self._sending, "two messages at once")
        self._sending = True
        self.tried += 1
        try:
            await self.reads.wait()
        finally:
            self._sending = False
        self._check(not self.ended, "a message after the last")
        self._check((message["type"] == "http.response.start") == (not self.sent), "one start, and first")
        self.sent.append((now(), message))
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.ended = True
            self.closed.set()

    def _check(self, is_right: bool, what: str) -> None:
        if not is_right:
            # Raised too, but maybe into a task that nobody waits for.
            self._faults.append(what)
            raise AssertionError(what)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.sent]

    @property
    def bodies(self) -> list[bytes]:
        assert not self._faults
        return [message["body"] for _, message in self.sent if message["type"] == "http.response.body"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        assert len(dict(self.sent[0][1]["headers"])) == len(self.sent[0][1]["headers"])
        return dict(self.sent[0][1]["headers"])


async def silence(seconds: float) -> None:
    await asyncio.sleep(seconds)


@in_virtual_time
async def test_nothing_is_sent_while_there_is_nothing_to_say() -> None:
    server = Server()
    client = server.client()
    with client.watched(keepalive_after_s=15):
        await silence(14.9)
        assert (server.tried, client.is_open) == (0, False)
        await silence(0.2)
        assert (server.times, server.bodies) == ([15, 15], [COMMENT])
        assert (client.is_open, client.status, client.has_content) == (True, 200, False)


@in_virtual_time
async def test_a_comment_follows_each_silence_counted_from_what_was_sent_last() -> None:
    server = Server()
    client = server.client()
    with client.watched(keepalive_after_s=15):
        await silence(50)
        await client.send_events(data_event(b"1"))
        await silence(40)
        await client.end_events(data_event(b"2"))
        await silence(100)
    comments = [at for at, message in server.sent if message.get("body") == COMMENT]
    assert comments == [15, 30, 45, 65, 80]
    assert server.ended


@in_virtual_time
async def test_a_stream_that_is_never_silent_has_no_comment() -> None:
    server = Server()
    client = server.client()
    with client.watched(keepalive_after_s=15):
        for _ in range(20):
            await silence(14)
            await client.send_events(data_event(b"x"))
    assert COMMENT not in server.bodies


@in_virtual_time
async def test_keepalive_may_be_off() -> None:
    server = Server()
    with server.client().watched(keepalive_after_s=None):
        await silence(3600)
    assert server.sent == []


@in_virtual_time
async def test_a_reader_that_does_not_read_is_sent_no_comment() -> None:
    server = Server()
    client = server.client()
    with client.watched(keepalive_after_s=15):
        await client.send_events(data_event(b"1"))
        server.reads.clear()
        sending = asyncio.create_task(client.send_events(data_event(b"2")))
        await silence(100)
        tried = server.tried
        server.reads.set()
        await sending
        await silence(14)
        assert (server.tried, server.bodies) == (tried, [data_event(b"1"), data_event(b"2")])


@in_virtual_time
async def test_events_wait_for_a_comment_that_is_being_sent() -> None:
    server = Server()
    client = server.client()
    server.reads.clear()
    with client.watched(keepalive_after_s=15):
        await silence(20)
        sending = asyncio.create_task(client.send_events(data_event(b"1")))
        await silence(100)
        server.reads.set()
        await sending
    assert server.bodies == [COMMENT, data_event(b"1")]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 14, 15, 16, 40]), st.sampled_from([0, 0, 1, 15, 40])), max_size=12),
    st.booleans(),
)
@in_virtual_time
async def test_a_comment_stands_between_events_and_silences_are_bounded(
    steps: list[tuple[int, int]], ends: bool
) -> None:
    server = Server()
    client = server.client()
    blocked_s = 0.0
    with client.watched(keepalive_after_s=15):
        for n, (wait_s, block_s) in enumerate(steps):
            await silence(wait_s)
            if block_s:
                server.reads.clear()
                asyncio.get_running_loop().call_later(block_s, server.reads.set)
                blocked_s += block_s
            await client.send_events(data_event(str(n).encode()))
        if ends:
            await client.end_events(b"data: [DONE]\n\n")
    events = EventSplitter("scripted").feed(b"".join(server.bodies))
    sent = [data_event(str(n).encode()) for n in range(len(steps))] + [b"data: [DONE]\n\n"] * ends
    assert [event for event in events if event != COMMENT] == sent
    gaps = [after - before for before, after in itertools.pairwise([0.0, *server.times])]
    assert max(gaps, default=0) <= 15 + blocked_s
    assert server.ended == ends


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("keepalive_after_s", [None, 1.0, 15.0])
@in_virtual_time
async def test_a_hang_up_cancels_the_work_at_once(is_open: bool, reads: bool, keepalive_after_s: float | None) -> None:
    server = Server()
    client = server.client()
    cancelled_at = 0.0

    async def work() -> None:
        nonlocal cancelled_at
        if is_open:
            await client.send_events(data_event(b"1"))
        if not reads:
            server.reads.clear()
        try:
            await client.send_events(data_event(b"2"))
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled_at = now()
            raise

    asyncio.get_running_loop().call_later(7, server.closed.set)
    with pytest.raises(ClientGone), client.watched(keepalive_after_s=keepalive_after_s):
        await work()
    assert (cancelled_at, now(), client.is_gone) == (7, 7, True)
    await nothing_is_left()


@in_virtual_time
async def test_a_hang_up_seen_after_the_work_is_done_is_none() -> None:
    server = Server()
    client = server.client()
    with client.watched(keepalive_after_s=15):
        server.closed.set()
    assert not client.is_gone
    await nothing_is_left()


@pytest.mark.parametrize("streamed", [True, False])
@in_virtual_time
async def test_a_response_that_is_complete_is_no_hang_up(streamed: bool) -> None:
    server = Server()
    client = server.client()
    with client.watched(keepalive_after_s=15):
        if streamed:
            await client.end_events(data_event(b"1"))
        else:
            await client.send_answer(200, b"{}")
        # As while an upstream's connection is read to its end, and what it said is counted.
        await silence(40)
    assert (server.ended, client.is_gone, len(server.bodies)) == (True, False, 1)


@pytest.mark.parametrize("hangs_up", [True, False])
@in_virtual_time
async def test_a_cancellation_from_outside_stays_one(hangs_up: bool) -> None:
    server = Server()
    client = server.client()

    async def work() -> None:
        with client.watched(keepalive_after_s=15):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await silence(3)
    if hangs_up:
        # Both in one turn.
        server.closed.set()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await nothing_is_left()


@in_virtual_time
async def test_an_error_of_the_work_stays_one() -> None:
    server = Server()
    with pytest.raises(ZeroDivisionError), server.client().watched(keepalive_after_s=15):
        raise ZeroDivisionError
    await nothing_is_left()


@in_virtual_time
async def test_a_server_that_fails_to_receive_has_no_client() -> None:
    server = Server()

    async def receive() -> Message:
        raise OSError

    client = Client(receive, server.send, request_id="r")
    with pytest.raises(ClientGone), client.watched(keepalive_after_s=15):
        await asyncio.Event().wait()
    assert client.is_gone


@pytest.mark.parametrize("opened_before", [True, False])
@in_virtual_time
async def test_a_stream_is_told_its_error_after_a_comment_was_cancelled_in_its_middle(opened_before: bool) -> None:
    server = Server()
    client = server.client()

    async def fail_while_a_comment_is_sent() -> None:
        if opened_before:
            await client.send_events(data_event(b"1"))
        else:
            await silence(20)
        server.reads.clear()
        await silence(20)
        raise ERROR

    with pytest.raises(UpstreamError), client.watched(keepalive_after_s=15):
        await fail_while_a_comment_is_sent()
    server.reads.set()
    await client.fail_stream(ERROR)
    last = server.bodies[-1]
    assert last.startswith(b'data: {"type":"error","error":{"type":"api_error","code":"upstream_error"')
    assert b'"request_id":"r-1"' in last
    assert server.ended
    assert b"[DONE]" not in b"".join(server.bodies)


@in_virtual_time
async def test_an_error_is_told_though_the_task_is_cancelled_and_not_for_longer_than_its_bound() -> None:
    for reads, ended in ((True, True), (False, False)):
        server = Server()
        client = server.client()
        await client.send_events(data_event(b"1"))
        if not reads:
            server.reads.clear()
        began = now()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.fail_stream(ERROR)
        assert server.ended == ended
        assert now() - began == (0 if reads else 5)


@in_virtual_time
async def test_a_stream_that_ended_is_told_nothing_more() -> None:
    server = Server()
    client = server.client()
    await client.end_events(data_event(b"1"))
    await client.fail_stream(ERROR)
    assert server.bodies == [data_event(b"1")]


@in_virtual_time
async def test_what_was_never_a_stream_is_told_nothing_by_an_event() -> None:
    server = Server()
    client = server.client()
    await client.fail_stream(ERROR)
    assert (server.sent, client.is_open, client.is_complete) == ([], False, False)
    # Nor is one whose first comment never left.
    server.reads.clear()
    with pytest.raises(UpstreamError), client.watched(keepalive_after_s=15):
        await fail_after(20)
    await asyncio.sleep(0)
    server.reads.set()
    await client.fail_stream(ERROR)
    assert (server.sent, client.is_open) == ([], False)
    await client.send_answer(200, b"{}")
    await client.fail_stream(ERROR)
    assert (server.bodies, client.is_complete) == ([b"{}"], True)


async def fail_after(seconds: float) -> None:
    await silence(seconds)
    raise ERROR


@in_virtual_time
async def test_what_is_streamed_says_so_with_the_headers_that_were_added() -> None:
    server = Server()
    client = server.client()
    client.headers.append((b"x-tidegate-model", b"m"))
    await client.send_events(b"")
    assert server.sent[0][1]["status"] == 200
    assert server.headers == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-store",
        b"x-accel-buffering": b"no",
        b"x-tidegate-model": b"m",
    }


@in_virtual_time
async def test_a_whole_answer_has_its_length() -> None:
    server = Server()
    client = server.client()
    client.headers.append((b"x-tidegate-model", b"m"))
    await client.send_answer(201, b'{"a":1}')
    assert (server.sent[0][1]["status"], client.status, server.bodies) == (201, 201, [b'{"a":1}'])
    assert server.headers == {
        b"content-type": b"application/json",
        b"content-length": b"7",
        b"x-tidegate-model": b"m",
    }


async def nothing_is_left() -> None:
    """No task of the client's goes on, and none of its timers fires."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await silence(1000)
    assert asyncio.all_tasks() == {asyncio.current_task()}
