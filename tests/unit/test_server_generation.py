import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from tidegate.server.children import Child, Running
from tidegate.server.commanding import Commands
from tidegate.server.generation import Generation
from tidegate.server.generations import Generations
from tidegate.settings import Settings

TOLD = {
    "made": None,
    "workers": 2,
    "stop_within_s": 1,
    "retire_within_s": 1,
    "source": {"name": "catalogue.toml", "text": "text"},
    "version": "v",
}


class Ended:
    pid = 0

    async def wait(self) -> int:
        return 0

    def send_signal(self, number: int) -> None:
        del number


async def generation_that_tells(told: Mapping[str, Any] | None) -> Generation:
    async def start(
        command: Sequence[str], *, descriptors: Sequence[int] = (), environ: Mapping[str, str] | None = None
    ) -> Child:
        del environ
        report = int(command[-1].removeprefix("--report="))
        assert report in descriptors
        if told is not None:
            os.write(report, orjson.dumps(told))
        return Child(cast("Running", Ended()), 0)

    generation = await Generation.start(1, start, ["server"], descriptors=[])
    await generation.opened
    return generation


async def test_a_newer_release_may_tell_more_than_its_root_knows() -> None:
    more = TOLD | {"source": {"name": "catalogue.toml", "text": "text", "new": 1}, "newer": "x"}
    for told in (TOLD, more):
        generation = await generation_that_tells(told)
        assert generation.told is not None
        assert (generation.told.workers, generation.told.source.text) == (2, "text")
        assert generation.catalogue is not None
        assert generation.catalogue.version == "v"
    assert (await generation_that_tells(None)).told is None


async def test_a_server_that_starts_is_not_replaced() -> None:
    class Coming:
        current: Generation | None = None

        async def replace(self, model_slots: int | None) -> None:
            raise AssertionError(model_slots)

    said: list[str] = []

    def say(line: str, **fields: Any) -> None:
        del fields
        said.append(line)

    generations = Coming()
    commands = Commands(Settings(environment="test"), model_slots=None, say=say)
    commands.enter(cast("Any", None), cast("Generations", generations))
    for current in (None, await generation_that_tells(None)):
        generations.current = current
        commands.replace_by_signal()
        await commands.end()
    assert ["still starting" in line for line in said] == [True, True]
