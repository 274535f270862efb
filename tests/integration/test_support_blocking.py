"""What blocks a loop of a test's gateway fails the test, with the stack; what waits as it should does not."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import IO

import pytest

from tests.support import blocking
from tests.support.blocking import ALLOWED
from tests.support.blocking_sample import GUILTY
from tests.support.server import GatewayPlan, answers
from tests.support.stand_in import ECHO, StandIn
from tests.support.warm import Warm, warm_start


class Sample(StandIn):
    """The tree around the app of `blocking_sample`."""

    def _spawned(self, out: IO[bytes], err: IO[bytes]) -> "subprocess.Popen[bytes] | Warm":
        module = "tests.support.blocking_sample"
        return warm_start(module, [], cwd=self.folder, env=self._environ(), stdout=out, stderr=err)


async def test_each_call_that_blocks_fails_the_test_with_its_stack(tmp_path: Path) -> None:
    gateway = Sample(tmp_path, GatewayPlan(catalogue=ECHO))
    await gateway.start()
    for path in GUILTY:
        # The call goes through: a gateway that is watched does what it would do alone.
        assert await answers(gateway.base_url, path, within_s=30) == 200
    with pytest.raises(AssertionError, match="the loop was blocked") as failure:
        await gateway.stop()
    found = blocking.told(gateway.folder / blocking.FILE)
    for work, what in GUILTY.values():
        assert any(text.startswith(what) and work.__name__ in text for text in found), (what, found)
    assert all(text in str(failure.value) for text in found)
    assert gateway.worst_loop_lag_s >= blocking.MOST_COMPUTING_S


async def test_what_waits_as_it_should_fails_nothing(tmp_path: Path) -> None:
    async with Sample(tmp_path, GatewayPlan(catalogue=ECHO)) as gateway:
        assert await answers(gateway.base_url, "/innocent") == 200
    assert (gateway.folder / blocking.FILE).read_bytes().count(b"worst_lag_s") == 1


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda allowed: f"{allowed.file}:{allowed.function}")
def test_what_may_block_still_exists_and_says_why_and_for_how_long(allowed: blocking.Allowed) -> None:
    package = importlib.util.find_spec(allowed.file.partition("/")[0])
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parents[1] / allowed.file
    assert f"def {allowed.function}(" in source.read_text("utf-8")
    assert re.search(r": \d.* (µs|ms)", allowed.reason)
