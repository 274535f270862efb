"""A real nginx before gateways, with the configuration that `deploy/nginx/tidegate.conf` gives as an example.

    async with Nginx(tmp_path, [gateway.port, other.port]) as nginx:
        async with RawClient(nginx.base_url) as client: ...
        await nginx.serve_by([other.port])

It runs as whoever runs the tests, in a folder of its own, and is ended by its pid. `listen` and `scheme` take the place
of the example's own; what is said by TLS there goes in the clear here.
"""

import asyncio
import http.client
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.debian import debian_program
from tests.support.server import LOOPBACK, free_port
from tests.support.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx" / "tidegate.conf"
_WITHIN_S = 20.0
_MAIN = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
{user}
events {{ worker_connections 4096; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen {loopback}:{status_port}; return 200 "{generation}"; }}
{site}
}}
"""


@dataclass(frozen=True)
class Site:
    """What of the example is changed: where it listens beside its port, what it says of the scheme, and the address of
    loopback that it asks the servers from.
    """

    listen: Sequence[str] = ()
    scheme: str = "$scheme"
    source: str = LOOPBACK


class Nginx:
    """An nginx from `start` to `stop`. `servers` are ports of loopback, or whole addresses as nginx writes them."""

    def __init__(self, folder: Path, servers: Sequence[int | str], site: Site | None = None) -> None:
        self.folder = folder.resolve() / f"nginx-{free_port()}"
        self.folder.mkdir(parents=True)
        self.port = free_port()
        self._site = site or Site()
        self._servers = list(servers)
        self._status_port = free_port()
        self._generation = 0
        self._program = debian_program("nginx", packages=("nginx",))
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Returns once it serves. Raises with what it said where it does not."""
        self._write()
        folder = str(self.folder)
        with (self.folder / "output").open("ab") as output:
            self._running = subprocess.Popen(
                [self._program.path, "-p", folder, "-c", str(self._file), "-e", f"{folder}/error.log"],
                env=dict(self._program.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        await self._serves_the_present_generation()

    async def serve_by(self, servers: Sequence[int | str]) -> None:
        """Goes on with these servers. Returns when every new connection comes to who knows them.

        Requests that run are ended by the workers that began them.
        """
        assert self._running is not None
        old = self._workers()
        self._servers = list(servers)
        self._write()
        self._running.send_signal(signal.SIGHUP)
        await self._serves_the_present_generation()
        await eventually(
            lambda: all(_leaves(worker) for worker in old), within_s=_WITHIN_S, what="the old workers leave"
        )

    async def stop(self) -> None:
        if self._running is None:
            return
        self._running.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._running.wait, _WITHIN_S)
        finally:
            for process in self._workers():
                process.kill()
            self._running.kill()
            self._running = None

    def errors(self) -> str:
        """Its error log."""
        log = self.folder / "error.log"
        return log.read_text(errors="replace") if log.exists() else ""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def _file(self) -> Path:
        return self.folder / "nginx.conf"

    def _write(self) -> None:
        self._generation += 1
        text = _MAIN.format(
            folder=self.folder,
            # As root it would give its workers to somebody who may not read the folder.
            user="user root;" if _is_root() else "",
            loopback=LOOPBACK,
            status_port=self._status_port,
            generation=self._generation,
            site=self._example(),
        )
        self._file.write_text(text)

    def _example(self) -> str:
        """The example, its marked lines replaced."""
        servers = "".join(f"server {_address(server)} max_fails=0;\n" for server in self._servers)
        listens = "".join(f"listen {place};\n" for place in (f"{LOOPBACK}:{self.port}", *self._site.listen))
        scheme = f"proxy_set_header X-Forwarded-Proto {self._site.scheme};\nproxy_bind {self._site.source};\n"
        marked = {"servers": servers, "listen": listens, "name": "server_name _;\n", "tls": "", "scheme": scheme}
        text = EXAMPLE.read_text()
        for mark, replacement in marked.items():
            lines = re.compile(rf"(?:^[^#\n]*# <{mark}>\n)+", re.MULTILINE)
            text, count = lines.subn(lambda _, new=replacement: new, text)  # type: ignore[misc]
            assert count == 1, f"{EXAMPLE} has no <{mark}>"
        return text

    def _workers(self) -> list[psutil.Process]:
        assert self._running is not None
        try:
            return psutil.Process(self._running.pid).children()
        except psutil.NoSuchProcess:
            return []

    async def _serves_the_present_generation(self) -> None:
        running = self._running
        assert running is not None

        def serves() -> bool:
            return running.poll() is not None or self._told_generation() == str(self._generation)

        await eventually(lambda: asyncio.to_thread(serves), within_s=_WITHIN_S, what="nginx serves")
        assert running.poll() is None, (self.folder / "output").read_text(errors="replace") + self.errors()

    def _told_generation(self) -> str:
        connection = http.client.HTTPConnection(LOOPBACK, self._status_port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()


def _address(server: int | str) -> str:
    return f"{LOOPBACK}:{server}" if isinstance(server, int) else server


def _is_root() -> bool:
    return psutil.Process().uids().effective == 0


def _leaves(worker: psutil.Process) -> bool:
    try:
        return not worker.is_running() or "shutting down" in " ".join(worker.cmdline())
    except psutil.Error:
        return True
