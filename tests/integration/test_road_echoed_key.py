"""The key that an upstream was sent, repeated by it in an error: the caller never sees it, whoever's key it was."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.behaviours import Answer, Completion, refusal
from tests.support.caller import catalogue_of
from tests.support.road import open_road
from tests.support.upstream import ScriptedUpstream
from tidegate.admission.slots import Lease, SlotAsk

LENT = "lent-Wf15Ga-with-the-slot"
SAID = f"not with Bearer {LENT}"


class LendingSlots:
    """Slots that say where to call, and with which key, as the local model's do."""

    in_use = waiting = 0

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    @asynccontextmanager
    async def hold(self, ask: SlotAsk, *, deadline_s: float | None) -> AsyncIterator[Lease]:
        del ask, deadline_s
        yield Lease("one", 0.0, base_url=self._base_url, api_key=LENT)


@pytest.mark.parametrize(
    "answer",
    [refusal(422, SAID), Completion(deltas=("a",), ending="error_event", error={"message": SAID, "type": "t"})],
    ids=["refused", "broken off"],
)
async def test_the_key_that_came_with_the_slot_is_masked(answer: Answer | Completion, tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        catalogue = catalogue_of({"one": {"base_url": upstream.base_url}}, {"m": "one/m"})
        async with open_road(tmp_path, catalogue) as road:
            lending = {"one": LendingSlots(upstream.base_url)}
            road.gateway.serving = replace(road.gateway.serving, slots=lending)
            upstream.enqueue(answer)
            reply = await road.caller.chat("echoed", model="m", stream=True)
            assert upstream.last.headers["authorization"] == f"Bearer {LENT}"
            assert "not with Bearer [key]" in reply.error["message"]
            assert LENT.encode() not in reply.body
            assert all(LENT not in event.raw.decode() for event in reply.events)
            await road.at_rest()
