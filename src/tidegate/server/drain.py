"""How a worker learns that it is to leave: uvicorn does not tell its app.

While a `Drain` is installed, the first SIGTERM or SIGINT makes `draining` true at once (new requests are then refused
with 503, and /health/ready turns 503), and reaches the handler that was installed before, uvicorn's own, after
`linger_s`. Until then the listeners stay open. A second SIGINT goes straight to that handler; a second SIGTERM changes
nothing, since gunicorn repeats it every second to a worker that it has too many.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

SignalHandler = Callable[[int, FrameType | None], object]


class Drain:
    """Whether this worker is leaving. Read by the flow and by health; set by a signal or by `begin`."""

    def __init__(self) -> None:
        self._draining = False

    @property
    def draining(self) -> bool:
        return self._draining

    def begin(self) -> None:
        self._draining = True


@contextmanager
def install_drain(*, linger_s: float) -> Iterator[Drain]:
    """Chains the handlers of SIGTERM and SIGINT for the block; for the app's lifespan, on the running loop.

    In another thread than the main one, where a server gets no signals (a test's), it installs nothing.

    >>> with install_drain(linger_s=settings.server.linger_s) as drain:
    ...     yield {"drain": drain}
    """
    drain = Drain()
    if threading.current_thread() is not threading.main_thread():
        yield drain
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def forward(number: int) -> None:
        _call(previous[signal.Signals(number)], number)

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        repeated = drain.draining
        drain.begin()
        if (number == signal.SIGINT and repeated) or linger_s == 0:
            forward(number)
        elif not repeated:
            # A signal interrupts the loop anywhere: only the thread-safe call may be used here.
            loop.call_soon_threadsafe(loop.call_later, linger_s, forward, signal.SIGTERM)

    for number in SIGNALS:
        signal.signal(number, receive)
    try:
        yield drain
    finally:
        for number in SIGNALS:
            if signal.getsignal(number) is receive:
                signal.signal(number, previous[number])


def _call(handler: SignalHandler | int | None, number: int) -> None:
    if callable(handler):
        handler(number, None)
    elif handler == signal.SIG_DFL:
        # Nobody else would end the process: there is no server under this loop.
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
