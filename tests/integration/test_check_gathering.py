"""How a server is asked for `tidegate check`: what is old, silent or gone is said, and what streams show is judged."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import in_process_server
from tests.unit.checked import CUT, live, nothing_wrong
from tidegate.check.gathering import Asked, gather
from tidegate.check.items import findings
from tidegate.check.live import stream
from tidegate.check.probes import Probes
from tidegate.check.report import as_json, print_report
from tidegate.check.subject import Facts
from tidegate.server.control import Message, NoRoot
from tidegate.server.control_door import AttachedWorker, ControlDoor

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def nobody(worker: AttachedWorker) -> None:
    del worker


def door(folder: Path, told: Message | None) -> ControlDoor:
    async def facts(ask: Message) -> Message:
        del ask
        return {"done": told}

    return ControlDoor(folder, {} if told is None else {"facts": facts}, nobody)


async def test_a_server_of_before_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoRoot, match="start it"):
        await gather(Asked(tmp_path))
    async with door(tmp_path, None):
        with pytest.raises(NoRoot, match="older version"):
            await gather(Asked(tmp_path))


async def test_a_worker_that_does_not_tell_is_silent_and_one_that_left_is_nobody(tmp_path: Path) -> None:
    server = nothing_wrong()
    workers = [
        {"pid": 101, "generation": 2, "state": "ready", "facts": server.workers[0]},
        {"pid": 102, "generation": 2, "state": "silent"},
        {"pid": 103, "generation": 2, "state": "ready", "facts": None},
        {"pid": 104, "generation": 2, "state": "gone"},
        {"pid": 105, "generation": 1, "state": "retiring", "facts": server.workers[1]},
    ]

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await lifespan(receive, send)

    async with in_process_server(app) as url:  # type: ignore[arg-type]
        root = server.root | {"workers": workers, "generation": 2, "url": url}
        async with door(tmp_path, root):
            subject = await gather(Asked(tmp_path, digests={"auth": "a", "http": "another"}))
    assert [worker["pid"] for worker in subject.workers] == [101]
    assert subject.silent == (102, 103)
    assert subject.differs_from_shell == ("http",)
    assert subject.strays == ()
    assert subject.seen["not_found"].status == 418
    assert [answer.status for answer in subject.countdown] == [418] * 4
    assert "--key-file" in subject.skipped_live


async def test_what_does_not_answer_is_an_answer_that_says_so() -> None:
    async with Probes("http://127.0.0.1:9") as probes:
        seen = await probes.everything(origins=["https://app.example.com"], management_url="http://127.0.0.1:9")
    assert {answer.status for answer in seen.values()} == {0}
    assert all(answer.error for answer in seen.values())


async def test_a_stream_that_hangs_up_is_watched_until_its_slot_is_free() -> None:
    looks: list[str] = []

    async def look(request_id: str) -> list[Facts]:
        looks.append(request_id)
        is_over = len(looks) > 1
        return [
            {
                "upstreams": {"one": {"in_use": 1 if is_over else 2}, "other": {"in_use": 5}},
                "requests": 6,
                "ledger": {"of_request": [CUT | {"request_id": request_id}]},
            }
        ]

    async with in_process_server(words) as url:  # type: ignore[arg-type]
        found = await stream(url, "tg_key", "m", is_echo=True, look=look)
    assert (found.status, found.is_done, found.problem, found.slots_left) == (200, True, None, 0)
    assert found.pieces > 1
    assert 0 < found.first_s < found.total_s
    assert looks == [found.hung_up_id, found.hung_up_id]
    assert found.hung_up_id != found.request_id


async def test_a_stream_that_was_refused_is_a_problem() -> None:
    async def refusing(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b'{"error": {"code": "invalid_api_key"}}'})

    async def look(request_id: str) -> list[Facts]:
        raise AssertionError(request_id)

    async with in_process_server(refusing) as url:  # type: ignore[arg-type]
        found = await stream(url, "tg_key", "m", is_echo=True, look=look)
    assert found.problem == "it was answered 401 (invalid_api_key)"


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    server = nothing_wrong()
    server.everywhere(lambda worker: worker["routes"].update(docs=["/docs\x1b[31m"]))
    subject = server.subject()
    found = findings(subject)
    print_report(subject, found, colours=True)
    coloured = capsys.readouterr().out
    assert "\x1b[32mpass" in coloured
    assert "\x1b[31mfail" in coloured
    assert "/docs\x1b" not in coloured
    print_report(subject, found, colours=False)
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert "3 Security: 4/5" in plain
    assert plain.endswith("24 of 25 pass.\n")
    told = as_json(subject, found)
    assert (told["passed"], told["environment"], told["workers"]) == (24, "production", 3)


def test_a_stream_in_the_subject_is_in_the_ids_too() -> None:
    server = nothing_wrong()
    server.others["live"] = live(entries=())
    assert {each.id for each in findings(server.subject()) if each.verdict == "fail"} == {"4.5", "5.5"}


async def words(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """An upstream's stream, a word at a time."""
    if scope["type"] != "http":
        await lifespan(receive, send)
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    sent = 0
    while sent < 20:
        sent += 1
        await send({"type": "http.response.body", "body": b"data: {}\n\n" * 500, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
