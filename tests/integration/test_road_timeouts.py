"""Each timeout of the contract: its own message, a 504 before the first byte, one error event after it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.support.behaviours import Behaviour, Completion, Sse, silent, stalled
from tests.support.blackhole import BlackHole, DeafPeer
from tests.support.caller import Json, Reply, Script, catalogue_of, chunk, content
from tests.support.road import Road, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import FOREVER

SHORT_S = 0.15
LONG_S = 60


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(send_buffer=16 * 1024) as server:
        yield server


@pytest.fixture(scope="module")
async def hole() -> AsyncIterator[BlackHole]:
    async with BlackHole() as opened:
        yield opened


@pytest.fixture(scope="module")
async def deaf() -> AsyncIterator[DeafPeer]:
    async with DeafPeer() as peer:
        yield peer


@pytest.fixture(scope="module")
async def road(
    upstream: ScriptedUpstream, hole: BlackHole, deaf: DeafPeer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Road]:
    def bounded(base_url: str, **short: float) -> Json:
        phases = ("connect_s", "write_s", "headers_s", "first_token_s", "idle_s", "total_s")
        timeouts = {phase: short.get(phase, LONG_S) for phase in phases}
        return {"base_url": base_url, "breaker": "off", "count": "deltas", "timeouts": timeouts}

    upstreams = {
        "connect": bounded(hole.base_url, connect_s=SHORT_S),
        "write": bounded(deaf.base_url, write_s=SHORT_S),
        "headers": bounded(upstream.base_url, headers_s=SHORT_S),
        "first_token": bounded(upstream.base_url, first_token_s=SHORT_S),
        "idle": bounded(upstream.base_url, idle_s=SHORT_S),
        "total": bounded(upstream.base_url, total_s=SHORT_S),
        "longer-total": bounded(upstream.base_url, total_s=1.5),
        "longer-idle": bounded(upstream.base_url, idle_s=0.4),
        "streaming": bounded(upstream.base_url, headers_s=SHORT_S, first_token_s=SHORT_S, idle_s=SHORT_S),
        "plain": bounded(upstream.base_url),
    }
    models = {name: f"{name}/m" for name in upstreams}
    async with open_road(tmp_path_factory.mktemp("road"), catalogue_of(upstreams, models)) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()


def timed_out(reply: Reply, entry: Json, *, phase: str, words: str, status: int = 504) -> None:
    assert reply.status == status
    error = reply.error
    assert (error["code"], error["type"]) == ("upstream_timeout", "timeout_error")
    assert error["message"].startswith(f"{phase} timeout: the upstream '{entry['upstream']}' {words}")
    assert (entry["outcome"], entry["status"], entry["error_code"]) == ("timed_out", status, "upstream_timeout")
    assert [attempt["outcome"] for attempt in entry["attempts"]] == ["timed_out"]


BEFORE: dict[str, tuple[str, Behaviour | None]] = {
    "connect": ("could not be connected to within", None),
    "headers": ("sent no response headers within", silent()),
    "first_token": ("sent no first token within", Completion(pauses={0: FOREVER})),
    "total": ("did not finish within", Completion(pauses={0: FOREVER})),
}


@pytest.mark.parametrize("phase", BEFORE)
async def test_a_timeout_before_the_first_token_is_a_504(phase: str, road: Road, upstream: ScriptedUpstream) -> None:
    words, behaviour = BEFORE[phase]
    if behaviour is not None:
        upstream.enqueue(behaviour)
    reply = await road.caller.chat(f"before-{phase}", model=phase)
    entry = await road.caller.entry(f"before-{phase}")
    timed_out(reply, entry, phase=phase, words=f"{words} {SHORT_S:g} s")
    assert entry["usage_source"] == ("none" if phase == "connect" else "estimated")
    if behaviour is not None:
        await upstream.wait_for(lambda: upstream.last.closed_early, within_s=2)


async def test_a_connection_that_times_out_is_given_up(road: Road, hole: BlackHole) -> None:
    await road.caller.chat("gives-up", model="connect")
    await eventually(lambda: hole.knocking() == 0, within_s=2)


async def test_an_upstream_that_does_not_take_the_request_is_a_write_timeout(road: Road, deaf: DeafPeer) -> None:
    large = [{"role": "user", "content": "x" * 8_000_000}]
    reply = await road.caller.chat("write", model="write", messages=large)
    timed_out(
        reply, await road.caller.entry("write"), phase="write", words=f"did not take the request within {SHORT_S}"
    )
    await eventually(lambda: deaf.established() == 0, within_s=2)


@pytest.mark.parametrize(("phase", "words"), [("idle", "sent nothing more for"), ("total", "did not finish within")])
async def test_a_timeout_after_the_first_token_is_one_event(
    phase: str, words: str, road: Road, upstream: ScriptedUpstream
) -> None:
    # In one piece, so that no busy moment parts them.
    upstream.enqueue(replace(stalled(after=2), sse=Sse(split="joined")))
    reply = await road.caller.chat(f"after-{phase}", model="longer-total" if phase == "total" else phase)
    entry = await road.caller.entry(f"after-{phase}")
    timed_out(reply, entry, phase=phase, words=words, status=200)
    assert len(reply.errors) == 1
    assert not reply.is_done
    assert (reply.text, entry["output_tokens"]) == ("token0 token1", 2)
    await upstream.wait_for(lambda: upstream.last.closed_early, within_s=2)


async def test_one_not_streamed_waits_under_the_total_alone(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(silent())
    reply = await road.caller.chat("whole-total", model="total", stream=False)
    entry = await road.caller.entry("whole-total")
    timed_out(reply, entry, phase="total", words="did not finish within")

    upstream.enqueue(Completion(before_headers=2 * SHORT_S, pauses={0: 2 * SHORT_S}))
    reply = await road.caller.chat("whole-slow", model="streaming", stream=False)
    assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, "Hello, world")


async def test_each_token_gives_the_idle_time_anew(road: Road, upstream: ScriptedUpstream) -> None:
    # As long in all as several idle times; a busy machine may stretch a gap, so there are tries.
    for n in range(5):
        upstream.enqueue(Completion(deltas=("a",) * 12, gap_s=SHORT_S / 5))
        reply = await road.caller.chat(f"steady-{n}", model="idle")
        if reply.is_done:
            return
    raise AssertionError("a steady stream ran into the idle timeout five times")


async def test_comments_of_the_upstream_are_no_first_token(road: Road, upstream: ScriptedUpstream) -> None:
    comments = [piece for _ in range(200) for piece in (b": wait\n\n", SHORT_S / 10)]
    upstream.enqueue(Script(pieces=[chunk(), *comments]))
    reply = await road.caller.chat("only-comments", model="first_token")
    entry = await road.caller.entry("only-comments")
    timed_out(reply, entry, phase="first_token", words="sent no first token within")


async def test_a_slow_reader_is_not_the_upstreams_idle_time(road: Road, upstream: ScriptedUpstream) -> None:
    # A busy machine may hold up the upstream itself, so there are tries.
    for n in range(3):
        upstream.enqueue(Completion(deltas=("x" * 16384,) * 400))
        async with road.client(receive_buffer=4096) as client:
            await road.caller.ask(client, f"slow-reader-{n}", model="longer-idle")
            await client.head()
            await content(client)
            # Nothing is read for longer than the idle time.
            sent = -1
            while sent != upstream.last.sent_events:
                sent = upstream.last.sent_events
                await asyncio.sleep(0.6)
            assert 0 < sent < 400
            events = [event async for event in client.events()]
        if events[-1].is_done:
            assert (await road.caller.entry(f"slow-reader-{n}"))["outcome"] == "completed"
            return
    raise AssertionError("a slow reader ran into the idle timeout three times")


# The caller's own deadline


async def test_the_callers_deadline_bounds_the_whole_request(road: Road, upstream: ScriptedUpstream) -> None:
    for label, behaviour, ms, status in [("before", silent(), 500, 408), ("after", stalled(after=1), 1500, 200)]:
        upstream.enqueue(behaviour)
        reply = await road.caller.chat(label, model="plain", headers={"x-tidegate-deadline-ms": str(ms)})
        assert reply.status == status
        assert (reply.error["code"], reply.is_done) == ("request_timeout", False)
        assert "X-Tidegate-Deadline-Ms" in reply.error["message"]
        await upstream.wait_for(lambda: upstream.last.closed_early, within_s=2)
        entry = await road.caller.entry(label)
        assert (entry["outcome"], entry["status"], entry["error_code"]) == ("timed_out", status, "request_timeout")
        assert [attempt["outcome"] for attempt in entry["attempts"]] == ["timed_out"]


@pytest.mark.parametrize("written", ["0", "-5", "soon", "1.5", "999999999999999"])
async def test_a_deadline_that_is_none_is_a_400(written: str, road: Road, upstream: ScriptedUpstream) -> None:
    before = len(upstream.requests)
    reply = await road.caller.chat("bad-deadline", model="plain", headers={"x-tidegate-deadline-ms": written})
    assert (reply.status, reply.error["code"]) == (400, "invalid_request")
    assert reply.error["param"] == "X-Tidegate-Deadline-Ms"
    assert len(upstream.requests) == before
