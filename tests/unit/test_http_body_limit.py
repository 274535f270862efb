"""Bodies over the limit: by their length unread, without a length by counting."""

from collections.abc import Callable

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.edge import EdgeApp, call, scope_of
from tests.unit.virtual_time import in_virtual_time
from tidegate.http.middleware import with_edge
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings

SETTINGS = Settings(environment="test", http=HttpSettings(max_body_bytes=100))


@pytest.fixture
def app() -> EdgeApp:
    return EdgeApp(SETTINGS)


def said(*sizes: int) -> list[bytes]:
    return [b"x" * size for size in sizes]


@pytest.mark.parametrize("size", [0, 1, 100])
async def test_body_up_to_the_limit_passes(app: EdgeApp, size: int) -> None:
    assert (await call(app, "POST", "/size", body=b"x" * size)).json == {"size": size}
    assert (await call(app, "POST", "/size", body=said(size, 0))).json == {"size": size}


async def test_longer_body_is_refused_by_its_length_unread() -> None:
    async def never_called(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the request went on")

    async def receive() -> Message:
        raise AssertionError("the body was read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    edge = with_edge(never_called, SETTINGS)
    await edge(scope_of("POST", "/size", headers=[(b"content-length", b"101")]), receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 413


async def test_refusal_names_the_limit_and_its_variable(app: EdgeApp) -> None:
    answer = await call(app, "POST", "/size", body=b"x" * 101)
    assert answer.status == 413
    assert answer.error["code"] == answer.error["type"] == "request_too_large"
    assert "100 bytes" in answer.error["message"]
    assert "TIDEGATE_HTTP__MAX_BODY_BYTES" in answer.error["message"]


@pytest.mark.parametrize("path", ["/size", "/ask", "/v1/ask"])
async def test_body_without_a_length_is_counted(app: EdgeApp, path: str) -> None:
    json = [(b"content-type", b"application/json")]
    answer = await call(app, "POST", path, headers=json, body=said(60, 40, 1))
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"
    assert answer.header("connection") == "close"
    assert answer.complete


async def test_rest_of_a_body_that_is_too_long_is_thrown_away_before_the_end(app: EdgeApp) -> None:
    read: list[int] = []
    pieces = said(101, *[50] * 20)

    async def receive() -> Message:
        read.append(len(pieces[len(read)]))
        return {"type": "http.request", "body": b"x" * read[-1], "more_body": len(read) < len(pieces)}

    ends: list[tuple[bool, int]] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            ends.append((message.get("more_body", False), len(read)))

    await app(scope_of("POST", "/size"), receive, send)
    assert ends == [(True, 1), (False, 21)]


@pytest.mark.parametrize(
    ("every_s", "pieces", "closed_s"),
    [(4.0, 5, 16.0), (4.0, 1000, 30.0), (6.0, 5, 5.0)],
    ids=["slow", "endless", "idle"],
)
@in_virtual_time
async def test_a_slow_sender_of_too_much_may_end_but_not_for_ever(every_s: float, pieces: int, closed_s: float) -> None:
    count = 0
    closed_at = 0.0

    async def receive() -> Message:
        nonlocal count
        if count:
            await anyio.sleep(every_s)
        count += 1
        return {"type": "http.request", "body": b"x" * 101, "more_body": count < pieces}

    async def send(message: Message) -> None:
        nonlocal closed_at
        if message["type"] == "http.response.body" and not message.get("more_body"):
            closed_at = anyio.current_time()

    await EdgeApp(SETTINGS)(scope_of("POST", "/size"), receive, send)
    assert closed_at == pytest.approx(closed_s)


@pytest.mark.parametrize("length", [b"abc", b"-1", b"+5", b"1.5", b"", b" 5", b"0x10", b"\xb2"])
async def test_length_that_is_no_number_is_a_400(app: EdgeApp, length: bytes) -> None:
    answer = await call(app, "POST", "/size", headers=[(b"content-length", length)], body=b"hello")
    assert answer.status == 400
    assert "Content-Length" in answer.error["message"]


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_off_the_road_a_body_is_64_kib_at_most_whatever_is_set(in_pieces: bool) -> None:
    app, most = EdgeApp(Settings(environment="test", http=HttpSettings(max_body_bytes=200_000))), 65_536

    def body(size: int) -> bytes | list[bytes]:
        return said(size // 2, size - size // 2) if in_pieces else b"x" * size

    assert (await call(app, "POST", "/size", body=body(most))).json == {"size": most}
    for path in ("/size", "/v1", "/v1x/size"):
        answer = await call(app, "POST", path, body=body(most + 1))
        # Nothing reads a body where there is no route.
        assert answer.status == (404 if in_pieces and path != "/size" else 413), path
    refused = (await call(app, "POST", "/size", body=body(most + 1))).error
    assert (refused["code"], "65536 bytes" in refused["message"]) == ("request_too_large", True)
    assert "TIDEGATE" not in refused["message"]
    assert (await call(app, "POST", "/v1/size", body=body(200_000))).json == {"size": 200_000}
    assert (await call(app, "POST", "/v1/size", body=body(200_001))).status == 413


@pytest.mark.parametrize("digits", [19, 5000])
async def test_endless_length_is_too_large(app: EdgeApp, digits: int) -> None:
    answer = await call(app, "POST", "/size", headers=[(b"content-length", b"9" * digits)], body=b"hello")
    assert answer.status == 413


async def test_swallowed_refusal_is_still_not_memory(app: EdgeApp) -> None:
    """An application that ignores the refusal gets it again at each further read."""
    outcomes: list[str] = []

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        reading: Callable[[], object] = receive
        del reading
        for _ in range(3):
            try:
                await receive()
            except Exception as error:  # noqa: BLE001 - any refusal counts here
                outcomes.append(type(error).__name__)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    await call(with_edge(stubborn, SETTINGS), "POST", "/", body=said(101, 1, 1))
    assert outcomes == ["HTTPException"] * 3
