"""The server of development: one uvicorn in one process, started by the root as `python -m tidegate.server.single`."""

import asyncio
import signal
import socket

from tidegate.server.http_server import GracefulServer, uvicorn_config
from tidegate.server.lifeline import terminate_self, watch
from tidegate.server.listening import adopt
from tidegate.server.opening import Opening, hush, serve


class _SingleServer(GracefulServer):
    """Ends also when the root is gone; SIGQUIT, the root's word for hurry, is gunicorn's too."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        watch(terminate_self)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self.hurry)
        await super().serve(sockets)


def _run(opening: Opening) -> None:
    hush(opening.settings)
    settings = opening.settings
    server = _SingleServer(uvicorn_config(opening.make_app(), settings), drain_s=settings.server.drain_s)
    server.run(sockets=adopt(opening.listeners))


if __name__ == "__main__":
    serve("worker", _run)
