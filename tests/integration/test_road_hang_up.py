"""A client that hangs up, in every phase, by FIN and by RST: four things are given back within two seconds."""

from pathlib import Path
from typing import Literal

import pytest

from tests.support.blackhole import BlackHole
from tests.support.phases import HANG_UP_WITHIN_S, HIDDEN_PHASES, PHASES, Phase, Scene, hung_up, phase_catalogue
from tests.support.road import open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", [*PHASES, *HIDDEN_PHASES], ids=lambda phase: phase.name)
async def test_a_hang_up_gives_everything_back_and_settles_once(
    phase: Phase, how: Literal["fin", "rst"], tmp_path: Path
) -> None:
    async with (
        ScriptedUpstream(send_buffer=16 * 1024) as upstream,
        BlackHole() as hole,
        open_road(tmp_path, phase_catalogue(upstream, hole)) as road,
    ):
        slots = road.gateway.slots["one"]
        scene = Scene(road.caller, upstream, hole, is_waiting=lambda: slots.waiting == 1)
        async with road.client(receive_buffer=phase.receive_buffer) as client:
            await scene.reach(phase, client, "gone")
            assert road.what_is_held()
            if how == "fin":
                client.hang_up()
            else:
                client.reset()
            await eventually(lambda: scene.has_let_go("gone"), within_s=HANG_UP_WITHIN_S)
            if phase.is_queued:
                await eventually(lambda: slots.waiting == 0, within_s=HANG_UP_WITHIN_S)
                await scene.release()
            await road.at_rest(within_s=HANG_UP_WITHIN_S)
        assert len(scene.seen("gone")) == phase.calls
        hung_up(await road.caller.entry("gone"), phase)
        assert (await road.caller.chat("next")).is_done
        await road.at_rest()
