"""The limit of open files is raised, and where there is none left, a caller is told so."""

import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tidegate.admission.model_gate import ModelGate
from tidegate.admission.slots import SlotAsk
from tidegate.errors import Unavailable
from tidegate.server.descriptors import MOST, raise_descriptor_limit


@contextmanager
def soft_limit(soft: int) -> Iterator[int]:
    """A soft limit within the context; yields the hard one."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_the_soft_limit_goes_to_the_hard_one_and_no_further_than_its_bound() -> None:
    with soft_limit(256) as hard:
        raise_descriptor_limit()
        most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)


async def test_a_worker_without_a_free_descriptor_refuses_instead_of_failing(tmp_path: Path) -> None:
    gate = ModelGate(tmp_path / "model.sock", upstream="local", queue_length=1, queue_deadline_s=1)
    with soft_limit(0):
        with pytest.raises(Unavailable) as refused:
            async with gate.hold(SlotAsk(uuid.uuid4()), deadline_s=None):
                pass
        assert await gate.status() is None
    assert "Too many open files" in refused.value.message
    assert refused.value.headers["Retry-After"] == "1"
    assert (gate.in_use, gate.waiting) == (0, 0)
