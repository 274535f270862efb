import os
import stat
from pathlib import Path

import pytest

from tidegate.server.directory import hold
from tidegate.server.refusal import StartRefused


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with hold(tmp_path / "a" / "var") as was_killed:
        assert stat.S_IMODE((tmp_path / "a" / "var").stat().st_mode) == 0o700
        assert not was_killed


def test_a_second_root_is_refused_and_told_whose_it_is(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(StartRefused, match=f"pid {os.getpid()}"), hold(tmp_path):
        pass


def test_after_an_end_the_next_root_finds_nothing(tmp_path: Path) -> None:
    with hold(tmp_path):
        pass
    with pytest.raises(RuntimeError), hold(tmp_path):
        raise RuntimeError
    with hold(tmp_path) as was_killed:
        assert not was_killed


def test_the_successor_of_a_killed_root_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "root.lock").write_text("12345\n")
    with hold(tmp_path) as was_killed:
        assert was_killed


def test_what_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StartRefused, match=r"TIDEGATE_DATA_DIR: .*file/var cannot be written"),
        hold(tmp_path / "file/var"),
    ):
        pass
