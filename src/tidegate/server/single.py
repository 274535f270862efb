"""The server of development: one uvicorn in one process, started by the root as `python -m tidegate.server.single`."""

import asyncio
import signal
import socket

import uvicorn

from tidegate.server.http_server import GracefulServer, uvicorn_config
from tidegate.server.lifeline import terminate_self, watch
from tidegate.server.listening import adopt
from tidegate.server.opening import Opening, hush, serve
from tidegate.server.supervisor import RootSupervisor


class _SingleServer(GracefulServer):
    """Ends also when the root is gone; SIGQUIT, the root's word for hurry, is gunicorn's too, and so is SIGUSR2."""

    def __init__(self, config: uvicorn.Config, *, drain_s: float, supervisor: RootSupervisor) -> None:
        super().__init__(config, drain_s=drain_s)
        self._supervisor = supervisor

    def retire(self) -> None:
        super().retire()
        self._supervisor.is_retiring = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        watch(terminate_self)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, self.hurry)
        loop.add_signal_handler(signal.SIGUSR2, self.retire)
        await super().serve(sockets)


def _run(opening: Opening) -> None:
    for number in (signal.SIGHUP, signal.SIGUSR1):
        # They are the root's. Without this they end a process.
        signal.signal(number, signal.SIG_IGN)
    hush(opening.settings)
    settings = opening.settings
    config = uvicorn_config(opening.make_app(), settings, opening.entrance)
    server = _SingleServer(config, drain_s=settings.server.drain_s, supervisor=opening.supervisor)
    server.run(sockets=adopt(opening.listeners))


if __name__ == "__main__":
    serve("worker", _run)
