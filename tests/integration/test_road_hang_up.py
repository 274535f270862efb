"""A client that hangs up, in every phase, by FIN and by RST: four things are given back within two seconds."""

from collections.abc import AsyncIterator
from typing import Literal

import pytest

from tests.support.blackhole import BlackHole
from tests.support.caller import reply_of
from tests.support.phases import HANG_UP_WITHIN_S, HIDDEN_PHASES, PHASES, Phase, Scene, hung_up, phase_catalogue
from tests.support.road import Road, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Road, Scene]]:
    async with (
        ScriptedUpstream(send_buffer=16 * 1024) as upstream,
        BlackHole() as hole,
        open_road(tmp_path_factory.mktemp("road"), phase_catalogue(upstream, hole)) as road,
    ):
        # Its vocabulary takes a second to load; what is measured here is a hang-up's end.
        await road.gateway.tokenizer.count("warm")
        slots = road.gateway.serving.slots["one"]
        yield road, Scene(road.caller, upstream, hole, is_waiting=lambda: slots.waiting == 1)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", [*PHASES, *HIDDEN_PHASES], ids=lambda phase: phase.name)
async def test_a_hang_up_gives_everything_back_and_settles_once(
    phase: Phase, how: Literal["fin", "rst"], scene: tuple[Road, Scene]
) -> None:
    road, seen = scene
    slots = road.gateway.serving.slots["one"]
    label = f"{phase.name}-{how}"
    async with road.client(receive_buffer=phase.receive_buffer) as client:
        await seen.reach(phase, client, label)
        assert road.what_is_held()
        if how == "fin":
            client.hang_up()
        else:
            client.reset()
        await eventually(lambda: seen.has_let_go(label), within_s=HANG_UP_WITHIN_S)
        if phase.is_queued:
            await eventually(lambda: slots.waiting == 0, within_s=HANG_UP_WITHIN_S)
            await seen.release()
        await road.at_rest(within_s=HANG_UP_WITHIN_S)
    assert len(seen.seen(label)) == phase.calls
    hung_up(await road.caller.entry(label), phase)
    assert (await road.caller.chat(f"{label}-next")).is_done
    await road.at_rest()


@pytest.mark.parametrize("phase", [PHASES[2], PHASES[5], HIDDEN_PHASES[0]], ids=lambda phase: phase.name)
async def test_a_hang_up_of_a_connection_that_served_before_is_seen_too(
    phase: Phase, scene: tuple[Road, Scene]
) -> None:
    road, seen = scene
    label = f"{phase.name}-kept"
    async with road.client() as client:
        for n in range(2):
            await road.caller.ask(client, f"{label}-before-{n}", stream=n == 0)
            assert (await reply_of(client)).status == 200
        await seen.reach(phase, client, label)
        client.hang_up()
        await eventually(lambda: seen.has_let_go(label), within_s=HANG_UP_WITHIN_S)
        if phase.is_queued:
            await seen.release()
        await road.at_rest(within_s=HANG_UP_WITHIN_S)
    hung_up(await road.caller.entry(label), phase)
