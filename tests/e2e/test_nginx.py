"""Gateways behind a real nginx with the configuration that we give as an example: streams, hang-ups, deploys."""

import asyncio
import itertools
from pathlib import Path

from tests.support.behaviours import Completion, flood, stalled
from tests.support.caller import Caller, catalogue_of
from tests.support.client import RawClient
from tests.support.nginx import Nginx
from tests.support.road import Road, open_road
from tests.support.server import GatewayPlan, GatewayProcess, free_port
from tests.support.stand_in import ECHO
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate

MIB = 1024 * 1024
# Far more than sockets on the way hold.
FLOOD = 256 * MIB
# Over two processes and a proxy; without one it is 50 ms.
HANG_UP_WITHIN_S = 2.0


def catalogue(upstream: ScriptedUpstream) -> str:
    return catalogue_of({"plain": {"base_url": upstream.base_url}}, {"m": "plain/m"})


async def _reached(gate: Gate) -> None:
    await eventually(lambda: gate.waiting)


async def _closed(upstream: ScriptedUpstream, count: int) -> None:
    """Waits until so many requests lost their client."""
    await upstream.wait_for(lambda: len(upstream.closed_early) == count, within_s=HANG_UP_WITHIN_S)


def port_of(road: Road) -> int:
    return int(road.base_url.rpartition(":")[2])


async def test_tokens_come_through_one_by_one(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    words = ["one", " two", " three"]
    gates = [Gate() for _ in words]
    # The first event has the role alone.
    upstream.enqueue(Completion(deltas=words, pauses=dict(enumerate(gates, 1))))
    async with (
        open_road(tmp_path, catalogue(upstream)) as road,
        Nginx(tmp_path, [port_of(road)]) as nginx,
        RawClient(nginx.base_url) as client,
    ):
        await Caller(nginx.base_url).ask(client, "one-by-one")
        assert (await client.head()).status == 200
        seen = []
        for gate in gates:
            await _reached(gate)
            gate.open()
            # The next event is held back until this one has come through.
            while not (event := await client.event()) or not event.content:
                assert event is not None
            seen.append(event.content)
        assert seen == words
        assert [event async for event in client.events()][-1].is_done
        await road.at_rest()


async def test_a_hang_up_before_nginx_ends_the_upstream(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_road(tmp_path, catalogue(upstream)) as road, Nginx(tmp_path, [port_of(road)]) as nginx:
        for label, stream in (("streamed", True), ("whole", False)):
            upstream.enqueue(stalled(after=2))
            async with RawClient(nginx.base_url) as client:
                await Caller(nginx.base_url).ask(client, label, stream=stream)
                if stream:
                    assert (await client.head()).status == 200
                    await client.event()
                else:
                    await upstream.received(2)
                client.hang_up()
            await _closed(upstream, 1 if stream else 2)
            await road.at_rest()
            assert (await road.caller.entry(label))["outcome"] == "client_disconnected"


async def test_a_server_that_leaves_costs_nobody_an_answer(tmp_path: Path) -> None:
    # While it lingers it answers 503 `draining`, then it refuses connections.
    plan = GatewayPlan(catalogue=ECHO, variables={"TIDEGATE_SERVER__LINGER_S": "1"})
    leaving, staying = GatewayProcess(tmp_path / "leaving", plan), GatewayProcess(tmp_path / "staying", plan)
    statuses: list[int] = []
    numbers = itertools.count()
    async with leaving, staying, Nginx(tmp_path, [leaving.port, staying.port]) as nginx:
        caller = Caller(nginx.base_url)

        async def ask_on() -> None:
            while leaving.exit_code is None or len(statuses) < 20:
                reply = await caller.chat(f"r-{next(numbers)}", model="echo")
                statuses.append(reply.status)

        asking = [asyncio.create_task(ask_on()) for _ in range(4)]
        await eventually(lambda: len(statuses) >= 8)
        assert await leaving.stop() == 0
        await asyncio.gather(*asking)
        assert set(statuses) == {200}
        by_leaving = [line for line in leaving.lines() if line["event"] == "request"]
        assert {line["status"] for line in by_leaving if line["path"].startswith("/v1/")} == {200, 503}


async def test_other_servers_are_taken_without_cutting_a_stream(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.enqueue(stalled(after=2, at=gate))
    text = catalogue(upstream)
    async with (
        open_road(tmp_path / "old", text) as old,
        open_road(tmp_path / "new", text) as new,
        Nginx(tmp_path, [port_of(old)]) as nginx,
        RawClient(nginx.base_url) as client,
    ):
        caller = Caller(nginx.base_url)
        await caller.ask(client, "begun")
        assert (await client.head()).status == 200
        assert await client.event() is not None
        await nginx.serve_by([port_of(new)])
        assert (await caller.chat("later")).is_done
        gate.open()
        assert [event async for event in client.events()][-1].is_done
        assert (await old.caller.entry("begun"))["outcome"] == "completed"
        assert (await new.caller.entry("later"))["outcome"] == "completed"


async def test_a_refusal_has_the_envelope_whoever_refuses(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_road(tmp_path, catalogue(upstream)) as road, Nginx(tmp_path, [port_of(road)]) as nginx:
        caller = Caller(nginx.base_url)
        for size in (21 * MIB, 25 * MIB):
            reply = await caller.call("POST", "/v1/chat/completions", body=b"x" * size)
            assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        await nginx.serve_by([free_port(), free_port()])
        reply = await caller.call("GET", "/v1/models")
        assert (reply.status, reply.error["code"]) == (503, "unavailable")
        assert reply.head.headers["retry-after"] == "1"


async def test_a_slow_reader_before_nginx_slows_its_upstream(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Buffered, nginx would take the whole stream and keep it in a file."""
    upstream.enqueue(flood(FLOOD))
    async with (
        open_road(tmp_path, catalogue(upstream)) as road,
        Nginx(tmp_path, [port_of(road)]) as nginx,
        RawClient(nginx.base_url, receive_buffer=16 * 1024) as client,
    ):
        await Caller(nginx.base_url).ask(client, "slow")
        assert (await client.head()).status == 200
        (received,) = await upstream.received()
        sent = [0]

        def stands_still() -> bool:
            sent.append(received.sent_events)
            return sent[-1] > 0 and len(set(sent[-4:])) == 1

        await eventually(stands_still, within_s=50, poll_s=0.3)
        assert received.done_at is None
        assert "buffered to a temporary file" not in nginx.errors()
        client.hang_up()
        await _closed(upstream, 1)
        await road.at_rest()
