"""One connection: one write a turn, answers in order, an end for every future. In virtual time, without a socket."""

import asyncio
import gc
from typing import Any

import pytest

from tests.unit.pipeline_server import ScriptedRedis, Words, parsed
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.storage.pipeline_wire import (
    MOST_UNANSWERED,
    MOST_UNSENT_BYTES,
    Address,
    ScriptError,
    StoreGone,
    Wire,
    pack,
)


def silent(_: Words) -> None:
    return None


def number(words: Words) -> bytes:
    return b":%d\r\n" % int(words[1])


async def connected(server: ScriptedRedis, lost: list[str] | None = None, *, silent_s: float = 5) -> Wire:
    wire = Wire(silent_s=silent_s, on_lost=([] if lost is None else lost).append)
    await server.dial(lambda: wire)
    return wire


async def ended(futures: list[asyncio.Future[Any]]) -> list[Any]:
    return await asyncio.gather(*futures, return_exceptions=True)


@in_virtual_time
async def test_all_commands_of_one_turn_go_out_in_one_write_and_are_answered_in_order() -> None:
    server = ScriptedRedis(number)
    wire = await connected(server)
    futures = [wire.send(pack(("N", each))) for each in range(1000)]
    assert server.writes == []
    assert await ended(futures) == list(range(1000))
    assert len(server.writes) == 1
    assert await wire.send(pack(("N", 7))) == 7
    assert len(server.writes) == 2


@in_virtual_time
async def test_words_go_out_whole_whatever_they_hold() -> None:
    server = ScriptedRedis()
    wire = await connected(server)
    await wire.send(pack(("SET", "schlüssel", b"\r\n$1\r\n\x00\xff", -5, "")))
    assert server.commands == [[b"SET", "schlüssel".encode(), b"\r\n$1\r\n\x00\xff", b"-5", b""]]


@in_virtual_time
async def test_an_answer_that_comes_byte_by_byte_is_whole() -> None:
    server = ScriptedRedis(silent)
    wire = await connected(server)
    futures = [wire.send(pack(("X",))) for _ in range(4)]
    answers = b"$4\r\na\r\nb\r\n*3\r\n:1\r\n*1\r\n$-1\r\n+fine\r\n$-1\r\n-WRONGTYPE of the key\r\n"
    for each in answers:
        server.say(bytes([each]))
    first, second, third, fourth = await ended(futures)
    assert (first, second, third) == (b"a\r\nb", [1, [None], b"fine"], None)
    assert isinstance(fourth, ScriptError)
    assert (fourth.code, str(fourth)) == ("WRONGTYPE", "WRONGTYPE of the key")
    assert not wire.is_lost


@in_virtual_time
async def test_a_cancelled_future_keeps_the_order() -> None:
    server = ScriptedRedis(number)
    wire = await connected(server)
    futures = [wire.send(pack(("N", each))) for each in range(3)]
    futures[1].cancel()
    assert (await futures[0], await futures[2]) == (0, 2)
    assert futures[1].cancelled()
    assert len(server.commands) == 3


@in_virtual_time
async def test_a_cancelled_future_that_is_refused_keeps_the_order() -> None:
    server = ScriptedRedis(lambda words: b"-OOM full\r\n" if words[1] == b"1" else number(words))
    wire = await connected(server)
    futures = [wire.send(pack(("N", each))) for each in range(3)]
    futures[1].cancel()
    assert (await futures[0], await futures[2]) == (0, 2)


@pytest.mark.parametrize("answer", [b"-NOSCRIPT no such", b"-ERR no"])
@in_virtual_time
async def test_only_a_script_that_the_server_does_not_know_is_sent_otherwise_and_once(answer: bytes) -> None:
    server = ScriptedRedis(lambda words: answer + b"\r\n" if words[0] in (b"A", b"B") else b":1\r\n")
    wire = await connected(server)
    known, other = wire.send(pack(("A",)), instead=lambda: pack(("B",))), wire.send(pack(("C",)))
    (refused, fine) = await ended([known, other])
    assert isinstance(refused, ScriptError)
    assert fine == 1
    tried = [b"A", b"C", b"B"] if answer.startswith(b"-NOSCRIPT") else [b"A", b"C"]
    assert [words[0] for words in server.commands] == tried


@in_virtual_time
async def test_an_unknown_script_whose_caller_left_is_not_run() -> None:
    server = ScriptedRedis(silent)
    wire = await connected(server)
    left = wire.send(pack(("A",)), instead=lambda: pack(("B",)))
    left.cancel()
    after = wire.send(pack(("C",)))
    await asyncio.sleep(0)
    server.say(b"-NOSCRIPT no such\r\n:2\r\n")
    assert await after == 2
    await asyncio.sleep(1)
    assert [words[0] for words in server.commands] == [b"A", b"C"]


@pytest.mark.parametrize("error", [None, ConnectionResetError(104, "Connection reset by peer")])
@in_virtual_time
async def test_a_loss_in_the_middle_ends_every_future_and_nothing_is_sent_again(error: Exception | None) -> None:
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost)
    futures = [wire.send(pack(("N", each))) for each in range(5)]
    while not server.commands:
        await asyncio.sleep(0)
    server.say(b":0\r\n:1\r\n$10\r\nhalf")
    server.transports[-1].end(error)
    first, second, *others = await ended(futures)
    assert (first, second) == (0, 1)
    assert [type(each) for each in others] == [StoreGone] * 3
    assert lost == ["it closed the connection" if error is None else "Connection reset by peer"]
    assert len(server.commands) == 5
    with pytest.raises(StoreGone):
        wire.send(pack(("N", 9)))


@in_virtual_time
async def test_commands_of_the_turn_of_the_loss_end_too_and_are_not_sent() -> None:
    server, lost = ScriptedRedis(), list[str]()
    wire = await connected(server, lost)
    future = wire.send(pack(("N", 1)))
    wire.lose("because")
    (error,) = await ended([future])
    assert (type(error), str(error), lost) == (StoreGone, "because", ["because"])
    assert server.writes == []


@in_virtual_time
async def test_a_loss_that_nobody_awaits_is_not_reported_by_the_loop() -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    wire = await connected(ScriptedRedis(silent))
    wire.send(pack(("N", 1)))
    wire.lose("because")
    gc.collect()
    await asyncio.sleep(0)
    assert reports == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"junk\r\n", "it answers what is not RESP"),
        (b":1\r\n:2\r\n", "it answers what nobody asked: …"),
        (b":1\r\n-ERR max number of clients reached\r\n", "it answers what nobody asked: ERR"),
        (b"-READONLY You can't write against a read only replica.\r\n", "it answers READONLY"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "it answers LOADING"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "it answers MASTERDOWN"),
    ],
)
@in_virtual_time
async def test_a_server_that_is_of_no_use_is_left(said: bytes, reason: str) -> None:
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost)
    future = wire.send(pack(("N", 1)))
    await asyncio.sleep(0)
    server.say(said)
    assert lost == [reason]
    (answer,) = await ended([future])
    assert answer == 1 or isinstance(answer, ScriptError | StoreGone)


@in_virtual_time
async def test_what_came_with_a_refusal_is_still_answered() -> None:
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost)
    futures = [wire.send(pack(("N", each))) for each in range(4)]
    await asyncio.sleep(0)
    server.say(b":0\r\n-READONLY no\r\n:2\r\n")
    first, refused, third, gone = await ended(futures)
    assert (first, refused.code, third, type(gone)) == (0, "READONLY", 2, StoreGone)


@in_virtual_time
async def test_commands_without_an_answer_are_bounded() -> None:
    server = ScriptedRedis(silent)
    wire = await connected(server)
    futures = [wire.send(pack(("N",))) for _ in range(MOST_UNANSWERED)]
    with pytest.raises(StoreGone):
        wire.send(pack(("N",)))
    await asyncio.sleep(0)
    server.say(b":1\r\n")
    assert await futures[0] == 1
    wire.send(pack(("N",)))
    with pytest.raises(StoreGone):
        wire.send(pack(("N",)))


@in_virtual_time
async def test_bytes_that_the_server_does_not_read_are_bounded_and_go_out_when_it_does() -> None:
    server = ScriptedRedis(silent)
    wire = await connected(server)
    server.transports[-1].is_full = True
    wire.send(pack(("N", 0)))
    await asyncio.sleep(0)
    size = MOST_UNSENT_BYTES // 8
    for _ in range(8):
        wire.send(pack(("N", b"x" * size)))
        await asyncio.sleep(0)
    with pytest.raises(StoreGone):
        wire.send(pack(("N", b"x")))
    assert len(server.writes) == 1
    server.transports[-1].is_full = False
    wire.resume_writing()
    assert [len(parsed(write)) for write in server.writes] == [1, 8]


@in_virtual_time
async def test_a_silent_server_is_dead_when_the_oldest_command_is_too_old() -> None:
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost, silent_s=5)
    await asyncio.sleep(100)
    assert lost == []
    started = now()
    first = wire.send(pack(("N", 0)))
    await asyncio.sleep(4)
    second = wire.send(pack(("N", 1)))
    for error in await ended([first, second]):
        assert isinstance(error, StoreGone)
    assert 5 <= now() - started < 5.2
    assert lost == ["no answer for 5 s"]


@in_virtual_time
async def test_the_watch_looks_at_the_oldest_and_not_at_the_last_answer() -> None:
    """Answers come all the time, each 6 s late: whoever waits is not served."""
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost, silent_s=5)
    futures = []
    for each in range(20):
        futures.append(wire.send(pack(("N", each))))
        await asyncio.sleep(1)
        if each >= 6 and not wire.is_lost:
            server.say(b":1\r\n")
        if wire.is_lost:
            break
    assert lost == ["no answer for 5 s"]
    await ended(futures)


@in_virtual_time
async def test_a_slow_server_that_answers_in_time_is_not_dead() -> None:
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost, silent_s=5)
    for each in range(20):
        future = wire.send(pack(("N", each)))
        await asyncio.sleep(4.9)
        server.say(b":1\r\n")
        assert await future == 1
    assert lost == []


@in_virtual_time
async def test_an_answer_that_lay_there_while_this_process_stood_still_is_read_first() -> None:
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost, silent_s=5)
    future = wire.send(pack(("N", 1)))
    await asyncio.sleep(0)
    # The loop wakes late: its timers are due before it looks at its sockets.
    asyncio.get_running_loop().call_at(now() + 5.01, server.say, b":1\r\n")
    assert await future == 1
    await asyncio.sleep(60)
    assert lost == []


@in_virtual_time
async def test_closing_sends_what_is_queued_and_tells_nobody_of_a_loss() -> None:
    server, lost = ScriptedRedis(silent), list[str]()
    wire = await connected(server, lost)
    future = wire.send(pack(("N", 1)))
    await wire.close()
    assert parsed(server.writes[0]) == [[b"N", b"1"]]
    assert isinstance((await ended([future]))[0], StoreGone)
    assert lost == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", ("h", 6379, None, 0, None, None)),
        ("redis://", ("localhost", 6379, None, 0, None, None)),
        ("redis://u:p%40s@h:7000/3", ("h", 7000, None, 3, "u", "p@s")),
        ("redis://:p@[2001:db8::1]:7000?db=4", ("2001:db8::1", 7000, None, 4, None, "p")),
        ("unix://u:p@/run/redis.sock?db=2", ("localhost", 6379, "/run/redis.sock", 2, "u", "p")),
    ],
)
def test_what_a_url_says(url: str, expected: tuple[object, ...]) -> None:
    address = Address.of(url)
    told = (address.host, address.port, address.path, address.db, address.username, address.password)
    assert told == expected
    assert address.tls is None
    assert "p@s" not in repr(address)


def test_tls_checks_the_server_unless_told_otherwise() -> None:
    strict, loose = Address.of("rediss://h").tls, Address.of("rediss://h?ssl_cert_reqs=none").tls
    assert strict is not None
    assert loose is not None
    assert (strict.get().check_hostname, loose.get().check_hostname) == (True, False)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sec/ret@h",
        "http://:secret@h",
        "redis://:secret@h?db=secret",
        "rediss://:secret@h?ssl_cert_reqs=secret",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        Address.of(url)
    assert "sec" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h", []),
        ("redis://h/0", []),
        ("redis://:p@h/2", [("AUTH", "p"), ("SELECT", 2)]),
        ("redis://u:p@h", [("AUTH", "u", "p")]),
        ("redis://u@h", [("AUTH", "u", "")]),
    ],
)
async def test_the_greeting_logs_in_and_chooses_the_database(url: str, words: list[tuple[object, ...]]) -> None:
    assert await Address.of(url).greeting("me") == [*words, ("CLIENT", "SETNAME", "me"), ("PING",)]
