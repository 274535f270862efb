"""The access line of each kind of end says what the caller, the upstream and the ledger saw; /health tells the rest."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.behaviours import Answer, Completion, stalled
from tests.support.caller import Caller, catalogue_of, content
from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

_PRICE = {"input": "2.00", "output": "8.00"}


class Served:
    def __init__(self, gateway: GatewayProcess, upstream: ScriptedUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.caller = Caller(gateway.base_url)

    async def line(self, label: str) -> dict[str, Any]:
        """The one access line of this label."""

        def written() -> list[dict[str, Any]]:
            lines = self.gateway.lines()
            return [line for line in lines if line["event"] == "request" and line.get("request_id") == label]

        lines = await eventually(written, what=f"the access line of {label}", poll_s=0.02)
        assert len(lines) == 1, lines
        return lines[0]

    async def line_like_its_entry(self, label: str) -> dict[str, Any]:
        """The line of an entered request, once it is seen to say what the entry says."""
        line, entry = await self.line(label), await self.caller.entry(label)
        for name in ("entry_id", "model", "upstream", "outcome", "input_tokens", "output_tokens", "ttft_ms"):
            assert line[name] == entry[name], name
        assert (line["status"], line["queue_ms"]) == (entry["status"], entry["queue_ms"])
        assert float(line["cost"]) == float(entry["cost"])
        assert line["attempts"] == len(entry["attempts"])
        assert line["duration_ms"] + 1 >= entry["duration_ms"]
        assert (line["method"], line["path"], line["key"]) == ("POST", "/v1/chat/completions", "testkey1")
        return line


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with ScriptedUpstream() as upstream:
        plain = {"base_url": upstream.base_url, "breaker": {"failures": 3, "window_s": 60, "open_s": 600}}
        catalogue = catalogue_of(
            {"plain": plain, "spare": {"base_url": upstream.base_url}},
            {
                "m": {"attempts": ["plain/m"], "price": _PRICE},
                "two": {"attempts": ["plain/m", "spare/m"], "price": _PRICE},
            },
        )
        async with GatewayProcess(tmp_path_factory.mktemp("served"), GatewayPlan(catalogue=catalogue)) as gateway:
            yield Served(gateway, upstream)


@pytest.mark.parametrize("streamed", [True, False])
async def test_line_of_an_answer_that_was_whole(served: Served, streamed: bool) -> None:
    served.upstream.enqueue(Completion(deltas=("one", " two", " three")))
    reply = await served.caller.chat(f"whole-{streamed}", stream=streamed)
    assert reply.status == 200
    line = await served.line_like_its_entry(f"whole-{streamed}")
    assert (line["status"], line["outcome"], line["bytes"]) == (200, "completed", len(reply.body))
    assert (line["input_tokens"], line["output_tokens"], line["attempts"]) == (7, 3, 1)
    assert float(line["cost"]) == pytest.approx(7 * 2e-6 + 3 * 8e-6)
    assert "error_code" not in line


async def test_line_of_a_hang_up_is_a_499(served: Served) -> None:
    served.upstream.enqueue(stalled(after=2))
    async with RawClient(served.caller.base_url) as client:
        await served.caller.ask(client, "gone")
        await client.head()
        event = await content(client)
        client.hang_up()
        line = await served.line_like_its_entry("gone")
    assert (line["status"], line["outcome"]) == (499, "client_disconnected")
    assert line["bytes"] >= len(event.raw)
    assert line["ttft_ms"] is not None


async def test_line_of_a_hang_up_before_the_first_byte_is_a_499_of_no_bytes(served: Served) -> None:
    served.upstream.enqueue(stalled(after=0))
    async with RawClient(served.caller.base_url) as client:
        await served.caller.ask(client, "early")
        await served.upstream.wait_for(lambda: served.upstream.in_flight == 1)
        client.hang_up()
        line = await served.line_like_its_entry("early")
    assert (line["status"], line["outcome"], line["bytes"]) == (499, "client_disconnected", 0)
    assert line["ttft_ms"] is None


async def test_line_of_a_stream_that_the_upstream_cut_counts_what_was_sent(served: Served) -> None:
    served.upstream.enqueue(Completion(deltas=("one", " two"), ending="rst"))
    reply = await served.caller.chat("cut")
    assert reply.errors
    line = await served.line_like_its_entry("cut")
    # The status was sent; how it ended stands beside it.
    assert (line["status"], line["outcome"], line["bytes"]) == (200, "upstream_failed", len(reply.body))
    assert line["error_code"] == reply.error["code"]


async def test_line_of_a_failover_counts_its_attempts(served: Served) -> None:
    served.upstream.enqueue(Answer(status=503, body=b"{}"), Completion(deltas=("one",)))
    reply = await served.caller.chat("second", model="two")
    assert reply.is_done
    line = await served.line_like_its_entry("second")
    assert (line["attempts"], line["upstream"], line["outcome"]) == (2, "spare", "completed")


@pytest.mark.parametrize(
    ("label", "key", "model", "status", "code"),
    [
        ("no-model", None, "nothing", 404, "model_not_found"),
        ("no-key", "tg_aaaaaaaa_" + "x" * 43, "m", 401, "invalid_api_key"),
    ],
)
async def test_line_of_a_refusal_has_its_code_and_no_entry(
    served: Served, *, label: str, key: str | None, model: str, status: int, code: str
) -> None:
    caller = served.caller if key is None else Caller(served.caller.base_url, key)
    reply = await caller.chat(label, model=model)
    line = await served.line(label)
    assert (line["status"], line["error_code"], line["bytes"]) == (status, code, len(reply.body))
    assert "entry_id" not in line
    assert ("key" in line) == (key is None)


async def test_every_line_at_work_bears_both_ids(served: Served) -> None:
    served.upstream.enqueue(Answer(status=503, body=b"{}"), Completion(deltas=("one",)))
    await served.caller.chat("told", model="two")
    access = await served.line("told")
    lines = [line for line in served.gateway.lines() if line.get("request_id") == "told"]
    assert [line["event"] for line in lines] == ["failover", "request"]
    assert {line["entry_id"] for line in lines} == {access["entry_id"]}
    assert {line["logger"] for line in lines} == {"tidegate.inference.flow", "tidegate.access"}


async def test_health_tells_an_operator_how_the_process_stands(served: Served) -> None:
    for _ in range(3):
        served.upstream.enqueue(Completion(deltas=(), ending="rst"))
        await served.caller.chat("breaks")

    async def drained() -> dict[str, Any] | None:
        details: dict[str, Any] = (await served.caller.call("GET", "/health")).json["details"]
        return details if details["journal"] == {"open": 0, "waiting": 0, "oldest_s": None} else None

    details = await eventually(drained, poll_s=0.1)
    assert details is not None
    assert details["breakers"]["plain"]["state"] == "open"
    assert details["breakers"]["plain"]["since"] is not None
    assert details["breakers"]["spare"] == {"state": "closed", "since": None}
    assert details["pid"] in {process.pid for process in served.gateway.tree()}
    assert details["uptime_s"] > 0
    assert details["loop"]["worst_ms"] >= details["loop"]["last_ms"] >= 0
    assert details["degraded_modes"] == {}
    text = (await served.caller.call("GET", "/health")).body
    assert str(served.upstream.port).encode() not in text


async def test_share_of_the_healthy_is_as_the_settings_say(tmp_path: Path) -> None:
    variables = {"TIDEGATE_LOGS__ACCESS_SAMPLE": "0"}
    catalogue = catalogue_of({"echo": {"provider": "echo"}}, {"m": "echo/m"})
    async with GatewayProcess(tmp_path, GatewayPlan(catalogue=catalogue, variables=variables)) as gateway:
        served = Served(gateway, ScriptedUpstream())
        assert (await served.caller.chat("healthy")).is_done
        assert (await served.caller.chat("faulty", model="nothing")).status == 404
        await served.line("faulty")
        assert not [line for line in gateway.lines() if line.get("request_id") == "healthy"]
