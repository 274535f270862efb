"""The code of before the newest migration, taken from git and run with the present virtual environment.

It is the parent of the commit that added the newest revision; while that is not committed, the last commit. Where there
is no such history a test is skipped, but in CI it fails.
"""

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import IO

import pytest

from tests.support.server import GatewayPlan, GatewayProcess, tidegate
from tests.support.warm import Warm

_REPOSITORY = Path(__file__).parents[2]
_VERSIONS = "src/tidegate/storage/migrations/versions"
_WITHIN_S = 60
# What every release knows; a setting that is newer would stop it.
_KNOWN = (
    "TIDEGATE_ENVIRONMENT",
    "TIDEGATE_DATA_DIR",
    "TIDEGATE_CONFIG_TOML",
    "TIDEGATE_DATABASE__URL",
    "TIDEGATE_SERVER__",
    "TIDEGATE_BOOTSTRAP__",
    "TIDEGATE_AUTH__",
)


def release_before(folder: Path) -> Path:
    """Unpacks it into `folder`; returns what to put on the path of Python."""
    newest = max(path.name for path in (_REPOSITORY / _VERSIONS).glob("[0-9]*.py"))
    try:
        added = _git("log", "--diff-filter=A", "--format=%H", "-1", "--", f"{_VERSIONS}/{newest}").decode().strip()
        archive = _git("archive", "--format=tar", f"{added}^" if added else "HEAD", "src")
    except (OSError, subprocess.CalledProcessError) as error:
        told = f"there is no code of before {newest}, for want of a git checkout with its history ({error})"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        # Python 3.11.4 has filters, and Debian 12's is older; the archive is of our own making.
        if hasattr(tarfile, "data_filter"):
            files.extraction_filter = tarfile.data_filter
        files.extractall(folder)
    assert not (folder / _VERSIONS / newest).exists()
    return folder / "src"


class ReleaseBefore(GatewayProcess):
    """A gateway that runs the code in `source`, in processes of its own making."""

    def __init__(self, folder: Path, plan: GatewayPlan, source: Path) -> None:
        super().__init__(folder, plan)
        self._source = source

    def migrate(self) -> None:
        """Brings an empty database to that release's head."""
        subprocess.run(
            tidegate("migrate"),
            cwd=self.folder,
            env=self._environ(),
            check=True,
            capture_output=True,
            timeout=_WITHIN_S,
        )

    def is_that_release(self) -> bool:
        """Whether its interpreter imports the code from there, and not what is installed."""
        asked = [*tidegate()[:-2], "-c", "import tidegate; print(tidegate.__file__)"]
        told = subprocess.check_output(asked, cwd=self.folder, env=self._environ(), timeout=_WITHIN_S, text=True)
        return Path(told.strip()).is_relative_to(self._source)

    def _environ(self) -> dict[str, str]:
        whole = super()._environ().items()
        kept = {name: value for name, value in whole if not name.startswith("TIDEGATE_") or name.startswith(_KNOWN)}
        return {**kept, "PYTHONPATH": str(self._source)}

    def _spawned(self, out: IO[bytes], err: IO[bytes]) -> "subprocess.Popen[bytes] | Warm":
        return self._executed(tidegate("serve"), out, err)


def _git(*arguments: str) -> bytes:
    command = ["git", "-c", f"safe.directory={_REPOSITORY}", *arguments]
    return subprocess.run(command, cwd=_REPOSITORY, check=True, capture_output=True, timeout=_WITHIN_S).stdout
