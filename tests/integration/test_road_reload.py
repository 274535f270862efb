"""A reload: requests keep the catalogue that they began with, and those that come after it have the new one."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.support.behaviours import Completion, RefusesStreamOptions, Usage, refusal, stalled
from tests.support.caller import Json, Reply, catalogue_of, content, reply_of
from tests.support.client import RawClient
from tests.support.road import Road, Root, open_road
from tests.support.sockets import towards
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate.routing.configuration import CatalogueError, CatalogueSource

CHEAP = MappingProxyType({"input": "1", "output": "1"})
DEAR = MappingProxyType({"input": "1000", "output": "1000"})


@pytest.fixture
async def here() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture
async def there() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


def served_by(upstream: ScriptedUpstream, *, price: object = CHEAP, **more: Any) -> str:
    """The model `m` at one upstream, `one`."""
    table = {"base_url": upstream.base_url, **more}
    return catalogue_of({"one": table}, {"m": {"attempts": ["one/m"], "price": price}})


def came_to(entry: Json, price: object) -> bool:
    """Whether an entry was charged so much a million tokens, of each kind alike."""
    assert isinstance(price, MappingProxyType)
    tokens = entry["input_tokens"] + entry["output_tokens"]
    return bool(tokens) and Decimal(entry["cost"]) == Decimal(price["input"]) * Decimal(tokens) / 1_000_000


async def begin(road: Road, client: RawClient, label: str) -> None:
    """Asks for a stream, and sees it begin."""
    await road.caller.ask(client, label, model="m")
    await client.head()
    await content(client)


async def is_done(client: RawClient) -> bool:
    """Whether the rest of a stream that began is whole."""
    return (await client.body()).endswith(b"[DONE]\n\n")


async def health_of(road: Road) -> Json:
    health: Json = (await road.caller.call("GET", "/health")).json
    return health


async def test_a_stream_that_began_before_ends_on_its_upstream_and_at_its_price(
    here: ScriptedUpstream, there: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    here.enqueue(stalled(after=1, at=gate))
    async with open_road(tmp_path, served_by(here)) as road, road.client() as client:
        before = (await health_of(road))["catalogue_version"]
        await begin(road, client, "began-before")
        version = await road.reload(served_by(there, price=DEAR))
        assert (await road.caller.chat("came-after", model="m")).is_done
        gate.open()
        assert await is_done(client)
        old, new = await road.caller.entry("began-before"), await road.caller.entry("came-after")
        assert came_to(old, CHEAP)
        assert came_to(new, DEAR)
        assert (old["outcome"], len(here.requests), len(there.requests)) == ("completed", 1, 1)
        assert (await health_of(road))["catalogue_version"] == version != before
        await road.at_rest()
        assert road.root.process.report()["slots"] == {"one": 0}


async def test_a_failover_after_it_goes_where_the_plan_said(
    here: ScriptedUpstream, there: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    here.enqueue(Completion(before_headers=gate, ending="rst", role_chunk=False, deltas=()))
    upstreams = {"one": {"base_url": here.base_url}, "two": {"base_url": there.base_url}}
    both = catalogue_of(upstreams, {"m": {"attempts": ["one/m", "two/m"], "price": CHEAP}})
    async with open_road(tmp_path, both) as road, road.client() as client:
        await road.caller.ask(client, "fails-over", model="m")
        await here.wait_for(lambda: gate.waiting)
        await road.reload(served_by(here, price=DEAR))
        gate.open()
        assert (await reply_of(client)).is_done
        entry = await road.caller.entry("fails-over")
        assert [attempt["upstream"] for attempt in entry["attempts"]] == ["one", "two"]
        assert came_to(entry, CHEAP)
        assert "two" not in road.gateway.serving.catalogue.upstreams
        # The gateway in force knows nothing of it any more, and nothing of it is held.
        await road.at_rest()
        await eventually(lambda: road.root.process.report()["slots"] == {"one": 0})


async def test_who_waits_keeps_their_place_and_their_upstream(
    here: ScriptedUpstream, there: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    here.enqueue(stalled(after=1, at=gate))
    narrow = served_by(here, max_concurrency=1)
    async with open_road(tmp_path, narrow) as road:
        clients = [road.client() for _ in range(5)]
        slots = road.gateway.serving.slots["one"]

        def waits(count: int) -> bool:
            return (slots.in_use, slots.waiting) == (1, count)

        try:
            for n, client in enumerate(clients):
                if n == 3:
                    await road.reload(served_by(there, max_concurrency=1, price=DEAR))
                await client.__aenter__()
                await road.caller.ask(client, f"place-{n}", model="m")
                await eventually(partial(waits, n))
            gate.open()
            assert all([(await reply_of(client)).is_done for client in clients])
        finally:
            for client in clients:
                await client.__aexit__(None, None, None)
        assert [request.headers["x-request-id"] for request in here.requests] == ["place-0", "place-1", "place-2"]
        assert [request.headers["x-request-id"] for request in there.requests] == ["place-3", "place-4"]
        assert here.requests[-1].done_at is not None
        assert here.requests[-1].done_at <= there.requests[0].received_at
        assert here.peak_in_flight == there.peak_in_flight == 1
        await road.at_rest()


async def test_a_broken_catalogue_changes_nothing_and_names_every_fault(here: ScriptedUpstream, tmp_path: Path) -> None:
    async with open_road(tmp_path, served_by(here)) as road:
        serving, health = road.gateway.serving, await health_of(road)
        broken = served_by(here, max_concurrency=0) + '[[models]]\nname = "n"\nattempts = ["nowhere/n"]\nprise = 1\n'
        with pytest.raises(CatalogueError) as caught:
            await road.reload(broken)
        assert [fault.partition(": ")[0] for fault in caught.value.faults] == ["reloaded.toml:4", "reloaded.toml:12"]
        assert "max_concurrency" in caught.value.faults[0]
        assert "did you mean price?" in caught.value.faults[1]
        with pytest.raises(CatalogueError, match="not TOML"):
            await road.reload("[upstreams")
        with pytest.raises(CatalogueError, match="there is nothing at env:NO_SUCH_KEY"):
            await road.reload(served_by(here, api_key="env:NO_SUCH_KEY"))
        assert road.gateway.serving is serving
        assert (await health_of(road))["catalogue_version"] == health["catalogue_version"]
        assert (await road.caller.chat("goes-on", model="m")).is_done


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "as an upstream"])
async def test_the_local_model_neither_comes_nor_goes_by_it(
    embedded: bool, here: ScriptedUpstream, tmp_path: Path
) -> None:
    local = CatalogueSource("embedded", None) if embedded else CatalogueSource("l.toml", _with_local(here))
    async with open_road(tmp_path, served_by(here)) as road:
        serving = road.gateway.serving
        with pytest.raises(CatalogueError, match="a reload cannot start the local model: restart the server"):
            await road.root.process.reload(local)
        assert road.gateway.serving is serving
    async with open_road(tmp_path, "", root=Root(local)) as road:
        before = road.gateway.serving.slots["local"]
        with pytest.raises(CatalogueError, match="a reload cannot stop the local model: restart the server"):
            await road.reload(served_by(here))
        with pytest.raises(CatalogueError, match="a reload cannot change the 4 slots of the local model"):
            await road.reload(_with_local(here, max_concurrency=2))
        await road.reload(_with_local(here, queue={"length": 1, "deadline_s": 2}))
        assert road.gateway.serving.slots["local"] is before
        assert (await road.caller.chat("beside-it", model="m")).is_done


def _with_local(upstream: ScriptedUpstream, **local: Any) -> str:
    upstreams = {"local": {"provider": "local", **local}, "one": {"base_url": upstream.base_url}}
    return catalogue_of(upstreams, {"small": "local/small", "m": "one/m"})


async def test_a_key_that_was_rotated_in_its_file_is_sent_from_then_on(here: ScriptedUpstream, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    text = served_by(here, api_key=f"file:{key}")
    async with open_road(tmp_path, text) as road:
        version = road.root.process.report()["catalogue_version"]
        await road.caller.chat("first", model="m")
        key.write_text("second\n")
        await road.caller.chat("still-first", model="m")
        assert await road.reload(text) == version
        await road.caller.chat("second", model="m")
        sent = [request.headers["authorization"] for request in here.requests]
        assert sent == ["Bearer first", "Bearer first", "Bearer second"]
        key.unlink()
        with pytest.raises(CatalogueError, match="there is nothing at file:"):
            await road.reload(text)
        assert (await road.caller.chat("goes-on", model="m")).is_done


async def test_several_at_once_are_done_in_their_order(
    here: ScriptedUpstream, there: ScriptedUpstream, tmp_path: Path
) -> None:
    async with open_road(tmp_path, served_by(here)) as road:
        # Reading it takes longer than reading the next.
        long = served_by(here) + "".join(f'[[models]]\nname = "m{n}"\nattempts = ["one/m"]\n' for n in range(300))
        texts = [served_by(there), served_by(here, price=DEAR), "broken =", long, served_by(there, price=DEAR)]
        done = await asyncio.gather(*(road.reload(text) for text in texts), return_exceptions=True)
        versions = [one for one in done if isinstance(one, str)]
        assert (len(set(versions)), isinstance(done[2], CatalogueError)) == (4, True)
        assert road.gateway.serving.catalogue.version == versions[-1] == (await health_of(road))["catalogue_version"]
        assert (await road.caller.chat("last", model="m")).is_done
        assert came_to(await road.caller.entry("last"), DEAR)
        assert (len(here.requests), len(there.requests)) == (0, 1)


async def test_a_breaker_stays_open_as_long_as_its_upstream_is_the_same(
    here: ScriptedUpstream, there: ScriptedUpstream, tmp_path: Path
) -> None:
    breaker = {"failures": 2, "window_s": 60, "open_s": 600}
    async with open_road(tmp_path, served_by(here, breaker=breaker)) as road:

        def opened() -> list[str]:
            names: list[str] = road.root.process.report()["breakers_open"]
            return names

        here.enqueue(refusal(500), refusal(500))
        for n in range(2):
            assert (await road.caller.chat(f"fails-{n}", model="m")).status == 502
        assert opened() == ["one"]
        await road.reload(served_by(here, breaker=breaker, price=DEAR, max_concurrency=3, queue={"length": 5}))
        assert opened() == ["one"]
        await road.reload(served_by(there, breaker=breaker))
        assert opened() == []


async def test_what_was_learnt_of_an_upstream_goes_on_with_it(
    here: ScriptedUpstream, there: ScriptedUpstream, tmp_path: Path
) -> None:
    here.default = there.default = RefusesStreamOptions()

    def asked(upstream: ScriptedUpstream) -> list[bool]:
        return ["stream_options" in request.body for request in upstream.requests]

    async with open_road(tmp_path, served_by(here)) as road:
        await road.caller.chat("learns", model="m")
        assert asked(here) == [True, False]
        await road.reload(served_by(here, price=DEAR, max_concurrency=2))
        await road.caller.chat("knows", model="m")
        assert asked(here) == [True, False, False]
        await road.reload(served_by(there))
        await road.caller.chat("asks-another", model="m")
        assert asked(there) == [True, False]


async def test_an_upstream_that_is_gone_ends_its_requests_and_its_connections(
    here: ScriptedUpstream, there: ScriptedUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    async with open_road(tmp_path, served_by(here, max_concurrency=2)) as road, road.client() as client:
        # One connection that stays idle, one that is in use.
        here.enqueue(stalled(after=1, at=gate), Completion())
        await begin(road, client, "stays")
        assert (await road.caller.chat("idle", model="m")).is_done
        assert len(towards(here.port, "established")) == 2
        elsewhere = catalogue_of({"two": {"base_url": there.base_url}}, {"m": "two/m"})
        await road.reload(elsewhere)
        await eventually(lambda: len(towards(here.port, "established")) == 1)
        assert road.root.process.report()["slots"] == {"one": 1, "two": 0}
        # Its name comes back while it is in use: there is one slot left of two, not two.
        await road.reload(served_by(here, max_concurrency=2))
        assert road.gateway.serving.slots["one"].in_use == 1
        await road.reload(elsewhere)
        gate.open()
        assert await is_done(client)
        await eventually(lambda: not towards(here.port, "established"))
        await eventually(lambda: road.root.process.report()["slots"] == {"two": 0})
        await road.at_rest()


async def test_a_queue_has_its_new_bounds_at_once(here: ScriptedUpstream, tmp_path: Path) -> None:
    gate = Gate()
    here.enqueue(stalled(after=1, at=gate))
    wide = {"length": 10, "deadline_s": 20}
    async with open_road(tmp_path, served_by(here, max_concurrency=1, queue=wide)) as road:
        slots = road.gateway.serving.slots["one"]
        async with road.client() as holder, road.client() as waiter:
            await begin(road, holder, "holds")
            await road.caller.ask(waiter, "waits", model="m")
            await eventually(lambda: slots.waiting == 1)
            await road.reload(served_by(here, max_concurrency=1, queue={"length": 1, "deadline_s": 20}))
            refused = await road.caller.chat("too-many", model="m")
            assert refused.status == 503
            assert "queue for the upstream 'one' is full (1 wait)" in refused.error["message"]
            await road.reload(served_by(here, max_concurrency=1, queue={"length": 2, "deadline_s": 0.05}))
            late: Reply = await road.caller.chat("late", model="m")
            assert "No slot of the upstream 'one' became free within 0.05 s" in late.error["message"]
            # Who waited before has the deadline of before.
            assert slots.waiting == 1
            gate.open()
            assert await is_done(holder)
            assert (await reply_of(waiter)).is_done
        await road.at_rest()


async def test_a_process_begins_with_the_roots_catalogue_and_is_asked_while_it_serves(
    here: ScriptedUpstream, tmp_path: Path
) -> None:
    root = Root(CatalogueSource("given.toml", served_by(here)))
    async with open_road(tmp_path, "not = 'read'", root=root) as road:
        assert (await road.caller.chat("served", model="m")).is_done
        report = root.process.report()
        assert report["catalogue_version"] == (await health_of(road))["catalogue_version"]
        assert (report["state"], report["draining"], report["requests"]) == ("ready", False, 0)
        assert report["started_at"].endswith("+00:00")
        road.leaving.draining = True
        assert (root.process.report()["state"], root.process.report()["draining"]) == ("draining", True)
    assert root.attached_now is None


async def test_a_budget_is_seeded_by_the_groups_that_the_catalogue_in_force_has(
    here: ScriptedUpstream, tmp_path: Path
) -> None:
    here.enqueue(Completion(usage=Usage(prompt=1_000_000)))
    text = served_by(here, price=DEAR)
    async with open_road(tmp_path, text) as road:
        assert (await road.caller.chat("spends-1000-dollars", model="m")).is_done
        await road.caller.entry("spends-1000-dollars")
        await road.reload(text.replace('name = "m"', 'name = "m"\ngroups = ["dear"]'))
        limit = {"scope": "workspace", "meter": "cost", "window": "total", "amount": "500", "model": "dear"}
        made = await road.caller.call("POST", "/api/limits", json=limit)
        assert made.status == 201, made.body
        refused = await road.caller.chat("after", model="m", max_tokens=1)
        assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
