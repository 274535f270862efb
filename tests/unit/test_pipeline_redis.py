"""The kept connections: what stands, what is lost, what is tried again. In virtual time, against a scripted server."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tests.unit.pipeline_server import ScriptedRedis, Words
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.storage.pipeline import PipelinedRedis, ScriptError, StoreGone, Subscription

SCRIPTS = {"one": "return 1", "two": "return 2"}


def to(server: ScriptedRedis, url: str = "redis://x", **options: Any) -> AbstractAsyncContextManager[PipelinedRedis]:
    return PipelinedRedis.running(url, client_name="tests", scripts=SCRIPTS, dial=server.dial, **options)


def answering_scripts(server: ScriptedRedis) -> ScriptedRedis:
    def answer(words: Words) -> bytes | None:
        if words[0] == b"EVALSHA" and words[1] not in server.scripts:
            return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
        if words[0] in (b"EVAL", b"EVALSHA"):
            return b":%d\r\n" % int(server.scripts.get(words[1], words[1]).split()[1])
        return b"+OK\r\n"

    server.answering = answer
    return server


async def until(redis: PipelinedRedis | Subscription, *, connected: bool) -> None:
    while redis.is_connected is not connected:
        await asyncio.sleep(0.01)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Events and reasons, as they were logged."""
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [" ".join(str(line[name]) for name in ("event", "reason") if name in line) for line in lines]


@pytest.fixture(autouse=True)
def _every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@in_virtual_time
async def test_a_connection_that_stands_has_greeted_and_loaded_every_script() -> None:
    server = answering_scripts(ScriptedRedis())
    async with to(server, "redis://u:p@x/3") as redis:
        assert (redis.is_connected, redis.run_id, redis.server_uptime_s) == (True, "a" * 40, 7)
        assert [words[0] for words in server.commands[:4]] == [b"AUTH", b"SELECT", b"CLIENT", b"PING"]
        assert set(server.scripts.values()) == {b"return 1", b"return 2"}
        assert len(server.writes) == 1
        one, two = redis.script("one", ["k"], [1]), redis.script("two", [], [])
        assert (await one, await two) == (1, 2)
        assert server.commands[-2][2:] == [b"1", b"k", b"1"]
        assert await redis.send("SET", "a", 1) == b"OK"
    assert (redis.is_connected, redis.run_id, redis.server_uptime_s) == (False, None, None)
    with pytest.raises(StoreGone):
        redis.send("PING")
    with pytest.raises(StoreGone):
        redis.script("one", [], [])


class Takes:
    """Takes an answer where it is read."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.set_result = self.set_exception = self.told.append

    def done(self) -> bool:
        return False

    def exception(self) -> None: ...


@in_virtual_time
async def test_a_script_whose_answer_is_taken_where_it_is_read_is_the_same_command() -> None:
    server, taker = answering_scripts(ScriptedRedis()), Takes()
    async with to(server) as redis:
        awaited = redis.script("two", ["köy"], ["take", b"\r\n\x00", "a" * 40])
        redis.hand_script(taker, "two", "köy", "take", b"\r\n\x00")
        assert await awaited == 2
        assert taker.told == [2]
        assert server.commands[-1] == server.commands[-2]
        server.forget_scripts()
        redis.hand_script(taker, "two", "k", "take", b"a")
        await redis.send("PING")
        # The script's turn came after that of what was sent meanwhile.
        await redis.send("PING")
        assert taker.told == [2, 2]
        assert [b"EVAL", b"return 2", b"1", b"k", b"take", b"a", b"a" * 40] in server.commands[-3:]
    with pytest.raises(StoreGone):
        redis.hand_script(taker, "two", "k", "take", b"a")


@in_virtual_time
async def test_who_takes_an_answer_hears_of_a_loss() -> None:
    server, taker = ScriptedRedis(), Takes()
    async with to(server) as redis:
        server.answering = lambda _: None
        redis.hand_script(taker, "two", "k", "take", b"a")
    assert [type(told) for told in taker.told] == [StoreGone]


@in_virtual_time
async def test_a_script_that_was_flushed_runs_once_by_its_source() -> None:
    server = answering_scripts(ScriptedRedis())
    async with to(server) as redis:
        server.forget_scripts()
        before = len(server.commands)
        assert await redis.script("two", ["k"], ["a", 5]) == 2
        first, second = server.commands[before:]
        assert first[0] == b"EVALSHA"
        assert second == [b"EVAL", b"return 2", b"1", b"k", b"a", b"5"]


@in_virtual_time
async def test_redis_away_is_no_error_and_is_tried_again_with_pauses(caplog: pytest.LogCaptureFixture) -> None:
    server = ScriptedRedis()
    server.refusals = 20
    async with to(server) as redis:
        assert (redis.is_connected, redis.run_id, server.dialled) == (False, None, 1)
        with pytest.raises(StoreGone):
            redis.send("PING")
        calls: list[str | None] = []
        redis.on_connected.append(lambda: calls.append(redis.run_id))
        await until(redis, connected=True)
        assert server.dialled == 21
        assert 8 < now() < 18
        assert calls == ["a" * 40]
    assert logged(caplog) == ["redis_unreachable Connection refused", "redis_connected"]


@in_virtual_time
async def test_a_server_that_says_nothing_holds_the_start_for_the_connect_timeout() -> None:
    server = ScriptedRedis()
    server.greeted = lambda words: None  # type: ignore[method-assign]
    server.answering = lambda words: None
    async with to(server, connect_timeout_s=1.0) as redis:
        assert not redis.is_connected
        assert now() == pytest.approx(1.0)
        assert server.transports[0].is_ended


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "it refuses PING: LOADING"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "it refuses PING: MASTERDOWN"),
        (b"-NOAUTH Authentication required.\r\n", "it refuses PING: NOAUTH"),
        (b"-ERR unknown command 'PING', with args beginning with: 'p4ss'\r\n", "it refuses PING: ERR"),
    ],
)
@in_virtual_time
async def test_a_server_that_cannot_serve_yet_is_not_connected_and_is_tried_again(
    answer: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = ScriptedRedis(lambda words: answer)
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with to(server, "redis://:p4ss@x") as redis:
        await asyncio.sleep(5)
        assert not redis.is_connected
        assert server.dialled > 4
        assert all(transport.is_ended for transport in server.transports[:-1])
        server.answering = lambda words: b"+OK\r\n"
        await until(redis, connected=True)
    assert logged(caplog) == [f"redis_unreachable {reason}", "redis_connected"]
    assert reports == []


@in_virtual_time
async def test_a_replica_is_not_connected() -> None:
    server = ScriptedRedis()
    server.role = "slave"
    async with to(server) as redis:
        assert not redis.is_connected
        server.role = "master"
        await until(redis, connected=True)


@in_virtual_time
async def test_a_loss_is_told_when_everything_has_ended_and_the_next_connection_knows_its_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ScriptedRedis(lambda words: None if words[0] == b"X" else b"+OK\r\n")
    told: list[tuple[str, bool, str | None, bool]] = []
    async with to(server) as redis:
        future = redis.send("X")

        def listen(name: str) -> None:
            told.append((name, redis.is_connected, redis.run_id, future.done()))

        redis.on_lost.append(lambda: listen("lost"))
        redis.on_connected.append(lambda: listen("connected"))
        await asyncio.sleep(0.1)
        server.run_id = "b" * 40
        server.transports[-1].end(None)
        with pytest.raises(StoreGone):
            await future
        await until(redis, connected=True)
    assert told == [("lost", False, None, True), ("connected", True, "b" * 40, True)]
    assert server.commands.count([b"X"]) == 1
    assert logged(caplog) == ["redis_connected", "redis_lost it closed the connection", "redis_connected"]


@in_virtual_time
async def test_a_listener_that_fails_takes_nothing_from_the_others() -> None:
    server, calls = ScriptedRedis(), list[str]()

    def fail() -> None:
        raise RuntimeError

    async with to(server) as redis:
        redis.on_lost += [fail, lambda: calls.append("lost")]
        redis.on_connected += [fail, lambda: calls.append("connected")]
        server.transports[-1].end(None)
        await asyncio.sleep(3)
        assert calls == ["lost", "connected"]
        assert redis.is_connected


@in_virtual_time
async def test_a_server_that_drops_every_connection_is_not_asked_in_a_rush() -> None:
    server = ScriptedRedis()
    async with to(server) as redis:
        redis.on_connected.append(lambda: server.transports[-1].end(None))
        server.transports[-1].end(None)
        await asyncio.sleep(60)
        assert server.dialled < 150


@in_virtual_time
async def test_a_silent_server_is_left_and_dialled_again() -> None:
    server = ScriptedRedis(lambda words: None if words[0] == b"X" else b"+OK\r\n")
    async with to(server, silent_s=2.0) as redis:
        with pytest.raises(StoreGone, match="no answer for 2 s"):
            await redis.send("X")
        assert not redis.is_connected
        await until(redis, connected=True)
        assert (server.dialled, server.transports[0].is_ended) == (2, True)


@in_virtual_time
async def test_a_server_that_became_a_replica_is_left() -> None:
    server = ScriptedRedis(lambda words: b"-READONLY no writes\r\n" if words[0] == b"SET" else b"+OK\r\n")
    async with to(server) as redis:
        with pytest.raises(ScriptError, match="READONLY"):
            await redis.send("SET", "a", 1)
        assert not redis.is_connected


@in_virtual_time
async def test_leaving_ends_what_waits_and_calls_no_listener() -> None:
    server, calls = ScriptedRedis(lambda words: None if words[0] == b"X" else b"+OK\r\n"), list[str]()
    async with to(server) as redis:
        redis.on_lost.append(lambda: calls.append("lost"))
        future = redis.send("X")
    assert isinstance(future.exception(), StoreGone)
    assert server.transports[-1].is_ended
    assert b"".join(server.writes).endswith(b"*1\r\n$1\r\nX\r\n")
    assert calls == []
    await asyncio.sleep(60)
    assert server.dialled == 1


@in_virtual_time
async def test_a_start_that_is_cancelled_leaves_no_connection() -> None:
    server = ScriptedRedis()
    server.greeted = lambda words: None  # type: ignore[method-assign]
    server.answering = lambda words: None

    async def enter() -> None:
        async with to(server):
            raise AssertionError

    task = asyncio.create_task(enter())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.transports[-1].is_ended


# Subscriptions


def published(channel: str, payload: str) -> bytes:
    return b"".join(
        [b"*3\r\n$7\r\nmessage\r\n", *(b"$%d\r\n%b\r\n" % (len(t), t.encode()) for t in (channel, payload))]
    )


class Ears:
    def __init__(self, server: ScriptedRedis) -> None:
        self.heard: list[object] = []
        server.answering = self.answer
        self.is_deaf = False
        self.running = Subscription.running(
            "redis://x",
            "tests",
            ["a", "b"],
            lambda channel, payload: self.heard.append((channel, payload)),
            lambda: self.heard.append("gap"),
            silent_s=5,
            dial=server.dial,
        )

    def answer(self, words: Words) -> bytes | None:
        if words[0] == b"SUBSCRIBE":
            return b"*3\r\n$9\r\nsubscribe\r\n$1\r\n%b\r\n:1\r\n" % words[1]
        return None if self.is_deaf else b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


@in_virtual_time
async def test_messages_are_heard_between_answers_and_gaps_are_told() -> None:
    server = ScriptedRedis()
    ears = Ears(server)
    async with ears.running as subscription:
        assert subscription.is_connected
        assert ears.heard == ["gap"]
        assert [words for words in server.commands if words[0] == b"SUBSCRIBE"] == [
            [b"SUBSCRIBE", b"a"],
            [b"SUBSCRIBE", b"b"],
        ]
        server.say(published("a", "1") + published("b", "2"))
        await asyncio.sleep(60)
        server.say(published("a", "3"))
        assert ears.heard == ["gap", ("a", b"1"), ("b", b"2"), ("a", b"3")]
        assert server.dialled == 1
        server.transports[-1].end(None)
        await asyncio.sleep(1)
        server.say(published("b", "4"))
        assert ears.heard[4:] == ["gap", ("b", b"4")]
    assert not subscription.is_connected


@in_virtual_time
async def test_a_listener_without_a_peer_finds_out_and_subscribes_again() -> None:
    server = ScriptedRedis()
    ears = Ears(server)
    async with ears.running:
        await asyncio.sleep(7)
        ears.is_deaf = True
        await asyncio.sleep(12)
        ears.is_deaf = False
        assert server.transports[0].is_ended
        await asyncio.sleep(7)
        assert ears.heard == ["gap", "gap"]
