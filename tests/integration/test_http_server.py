"""The edge on a real socket, under uvicorn with our protocol: what only a connection can show."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.client import ConnectionEnded, RawClient
from tests.support.waiting import eventually, eventually_sync

ROOT = Path(__file__).parents[2]
MAX_BODY = 200_000
MIB = 1 << 20


@dataclass
class Server:
    """A server in a process of its own. `output` is what it wrote."""

    url: str
    running: subprocess.Popen[bytes]
    output: Path
    release_file: Path

    def lines(self) -> list[dict[str, Any]]:
        whole = self.output.read_bytes().rpartition(b"\n")[0]
        return [orjson.loads(line) for line in whole.splitlines()]

    def requests(self, path: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == "request" and line["path"] == path]

    async def request(self, path: str) -> dict[str, Any]:
        """The one line of the one request for this path."""
        await eventually(lambda: self.requests(path), what=f"the line of {path}")
        (line,) = self.requests(path)
        return line


def url_in(text: bytes) -> str:
    """Where a server says that it runs, empty where it does not yet."""
    match = re.search(rb"running on (http://127\.0\.0\.1:\d+)", text)
    return match[1].decode() if match else ""


@contextmanager
def serving(folder: Path, stdout: int | None = None, **variables: str) -> Iterator[Server]:
    output, errors, release = folder / "stdout", folder / "stderr", folder / "release"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    environment |= {
        "TIDEGATE_ENVIRONMENT": "test",
        "TIDEGATE_HTTP__MAX_BODY_BYTES": str(MAX_BODY),
        "EDGE_RELEASE_FILE": str(release),
        "PYTHONPATH": str(ROOT),
    } | variables
    with ExitStack() as stack:
        out = stack.enter_context(output.open("wb")) if stdout is None else stdout
        err = stack.enter_context(errors.open("wb"))
        command = [sys.executable, "-m", "tests.support.edge"]
        running = stack.enter_context(subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=folder))
        stack.callback(running.terminate)
        if stdout is not None:
            yield Server("", running, output, release)
        else:
            url = eventually_sync(lambda: url_in(output.read_bytes()), within_s=60, what="the server's start")
            yield Server(url, running, output, release)
        running.terminate()
        assert running.wait(30) in (0, -15)
    assert errors.read_bytes() == b""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("edge")) as server:
        yield server


async def answer(client: RawClient) -> tuple[int, dict[str, str], Any]:
    head = await client.head()
    return head.status, head.headers, orjson.loads(await client.body())


def assert_envelope(status: int, headers: dict[str, str], body: Any, expected: tuple[int, str]) -> None:
    assert (status, body["error"]["code"]) == expected
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == body["request_id"]


async def test_every_line_from_start_to_end_is_json(tmp_path: Path) -> None:
    with serving(tmp_path, TIDEGATE_ENVIRONMENT="test") as own:
        for path in ("/ok", "/boom", "/broken-stream", "/nowhere"):
            async with RawClient(own.url) as client:
                await client.send("GET", path, headers={"x-request-id": f"id-of-{path[1:]}"})
                await client.head()
                # To its end: a client that leaves earlier is another story.
                with suppress(ConnectionEnded):
                    await client.body()
        async with RawClient(own.url) as client:
            await client.send_raw(b"NOT HTTP\r\n\r\n")
            await client.head()
    lines = own.lines()
    events = [line["event"] for line in lines]
    assert events.count("request") == 4
    assert any(event.startswith("Started server process") for event in events)
    assert any(event.startswith("Finished server process") for event in events)
    assert all(list(line)[:6] == ["ts", "level", "event", "logger", "process", "pid"] for line in lines)
    of_ok = [line for line in lines if line.get("request_id") == "id-of-ok"]
    assert [line["event"] for line in of_ok] == ["at work", "request"]
    # uvicorn's own complaint of the broken stream bears the request's id as well.
    of_stream = [line["logger"] for line in lines if line.get("request_id") == "id-of-broken-stream"]
    assert of_stream == ["tidegate.http.middleware", "tidegate.access", "uvicorn.error"]
    assert "hunter2" not in own.output.read_text()
    assert "sk-thisisalocalvariable" not in str([line for line in lines if line["event"] == "request"])


async def test_hang_up_in_mid_stream_is_a_499_at_the_true_end(server: Server) -> None:
    async with RawClient(server.url) as client, RawClient(server.url) as other:
        await client.send("GET", "/endless")
        assert (await client.head()).status == 200
        assert await client.piece() == b"first"
        await other.send("GET", "/ok?while=streaming", headers={"x-request-id": "other"})
        await other.head()
        await eventually(lambda: [line for line in server.requests("/ok") if line["request_id"] == "other"])
        assert server.requests("/endless") == []
        client.hang_up()
    line = await server.request("/endless")
    assert (line["status"], line["bytes"]) == (499, 5)


async def test_hang_up_on_who_does_not_listen_is_a_499_too(server: Server) -> None:
    async with RawClient(server.url) as client:
        await client.send("GET", "/deaf")
        # Its own request has come to the route once another one's has, on a loop that takes them in turn.
        async with RawClient(server.url) as other:
            await other.send("GET", "/ok")
            await other.head()
        client.hang_up()
    async with RawClient(server.url) as other:
        await other.send("GET", "/ok")
        await other.head()
    server.release_file.touch()
    assert (await server.request("/deaf"))["status"] == 499
    server.release_file.unlink()


async def test_hang_up_reaches_the_request_at_work_behind_which_others_wait(tmp_path: Path) -> None:
    with serving(tmp_path) as own:
        async with RawClient(own.url) as client:
            request = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
            await client.send_raw(request % b"endless" + request % b"ok" + request % b"boom")
            await client.head()
            assert await client.piece() == b"first"
            client.hang_up()
        assert (await own.request("/endless"))["status"] == 499
        assert own.requests("/ok") == own.requests("/boom") == []


async def test_broken_stream_is_seen_to_be_broken(server: Server) -> None:
    async with RawClient(server.url) as client:
        await client.send("GET", "/broken-stream")
        assert (await client.head()).status == 200
        with pytest.raises(ConnectionEnded) as ended:
            await client.body()
        assert ended.value.partial == b"first"


@pytest.mark.parametrize(
    "request_",
    [
        b"NOT HTTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-request-id: a\rb\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/size HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /ok HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 70_000 + b"\x00",
    ],
)
async def test_what_cannot_be_parsed_gets_the_envelope(server: Server, request_: bytes) -> None:
    async with RawClient(server.url) as client:
        await client.send_raw(request_)
        assert_envelope(*await answer(client), (400, "invalid_request"))
        assert await client.closed_by_server()


async def test_body_that_breaks_off_on_the_way_gets_the_envelope_and_ends_its_request(server: Server) -> None:
    async with RawClient(server.url) as client:
        await client.send_raw(b"POST /v1/size HTTP/1.1\r\nhost: x\r\nx-request-id: breaks\r\n")
        await client.send_raw(b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        async with RawClient(server.url) as other:
            await other.send("GET", "/ok")
            await other.head()
        await client.send_raw(b"zz\r\n")
        assert_envelope(*await answer(client), (400, "invalid_request"))
        assert await client.closed_by_server()
    await eventually(lambda: [line for line in server.requests("/v1/size") if line["request_id"] == "breaks"])


async def test_garbage_behind_a_running_answer_is_not_answered_into_it(server: Server) -> None:
    async with RawClient(server.url) as client:
        await client.send("GET", "/endless?garbage")
        await client.head()
        assert await client.piece() == b"first"
        await client.send_raw(b"NOT HTTP\r\n\r\n")
        with pytest.raises(ConnectionEnded) as ended:
            await client.body()
        assert ended.value.partial == b""


def many_headers(size: int) -> bytes:
    return b"".join(b"x-%06d: %s\r\n" % (n, b"y" * 987) for n in range(size // 1000))


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"GET /ok HTTP/1.1\r\n" + many_headers(80_000) + b"\r\n"], id="at once"),
        pytest.param([b"GET /ok HTTP/1.1\r\nx: ", *[b"y" * 1000] * 80], id="one header without end"),
        pytest.param([b"GET /", *[b"y" * 1000] * 80], id="a line without end"),
        pytest.param([b"GET /ok HTTP/1.1\r\n", *[many_headers(8000)] * 10], id="headers without end"),
    ],
)
async def test_head_that_is_too_large_is_a_431(server: Server, pieces: list[bytes]) -> None:
    async with RawClient(server.url) as client:
        for piece in pieces:
            await client.send_raw(piece)
        assert_envelope(*await answer(client), (431, "headers_too_large"))
        assert await client.closed_by_server()


async def test_large_heads_that_are_not_too_large_pass_and_do_not_add_up(server: Server) -> None:
    async with RawClient(server.url) as client:
        for _ in range(4):
            await client.send_raw(b"GET /ok HTTP/1.1\r\nhost: x\r\n" + many_headers(50_000))
            await client.send_raw(b"\r\n")
            assert (await answer(client))[0] == 200
        # A body beside a small head counts for no head.
        await client.send("POST", "/v1/size", body=b"x" * MAX_BODY)
        assert (await answer(client))[2] == {"size": MAX_BODY}


async def test_body_over_the_limit_is_answered_and_the_connection_lives(server: Server) -> None:
    async with RawClient(server.url) as client:
        await client.send("POST", "/v1/size", body=b"x" * (8 * MIB))
        assert_envelope(*await answer(client), (413, "request_too_large"))
        await client.send("GET", "/ok")
        assert (await answer(client))[0] == 200


async def test_body_over_the_limit_is_refused_before_it_is_sent(server: Server) -> None:
    async with RawClient(server.url) as client:
        head = f"POST /v1/size HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {MAX_BODY + 1}\r\n\r\n"
        await client.send_raw(head.encode())
        # The first head is the refusal, no 100.
        assert_envelope(*await answer(client), (413, "request_too_large"))


async def test_chunked_body_over_the_limit_is_answered_and_the_connection_closed(server: Server) -> None:
    async with RawClient(server.url) as client:
        await client.send_raw(b"POST /v1/size HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(8):
            await client.send_raw(b"%x\r\n" % MIB + b"x" * MIB + b"\r\n")
        await client.send_raw(b"0\r\n\r\n")
        status, headers, body = await answer(client)
        assert_envelope(status, headers, body, (413, "request_too_large"))
        assert headers["connection"] == "close"
        assert await client.closed_by_server()


async def test_chunked_body_that_never_ends_is_closed_all_the_same(server: Server) -> None:
    async with RawClient(server.url) as client:
        await client.send_raw(b"POST /v1/size HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        await client.send_raw(b"%x\r\n" % MIB + b"x" * MIB + b"\r\n")
        assert (await answer(client))[0] == 413
        assert await client.closed_by_server()


async def test_hostile_request_id_is_replaced_on_the_wire(server: Server) -> None:
    for label in (b"x" * 200, "é".encode(), b"a b", b"<script>"):
        async with RawClient(server.url) as client:
            await client.send_raw(b"GET /ok HTTP/1.1\r\nhost: x\r\nx-request-id: " + label + b"\r\n\r\n")
            assert re.fullmatch("[0-9a-f]{32}", (await client.head()).headers["x-request-id"])


async def test_reader_of_the_log_that_does_not_read_stalls_no_request(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        with serving(tmp_path, stdout=write_end) as own:
            first = b""

            def started() -> str:
                nonlocal first
                first += os.read(read_end, 4096)
                return url_in(first)

            url = eventually_sync(started, within_s=60)
            async with RawClient(url) as client:
                for n in range(300):
                    await client.send("GET", f"/nowhere/{n}/" + "x" * 1000)
                    assert (await answer(client))[0] == 404
            got = read_until(read_end, lambda text: text.count(b'"event":"request"') == 300)
            own.running.terminate()
            assert own.running.wait(30) in (0, -15)
        os.close(write_end)
        write_end = -1
        rest = read_until(read_end, lambda _: False)
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    lines = [orjson.loads(line) for line in (first + got + rest).splitlines()]
    paths = [line["path"] for line in lines if line["event"] == "request"]
    assert [path.split("/")[2] for path in paths] == [str(n) for n in range(300)]


def read_until(descriptor: int, enough: Callable[[bytes], bool]) -> bytes:
    """Reads until there is enough, or to the end."""
    text = b""
    while not enough(text):
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            break
        text += piece
    return text
