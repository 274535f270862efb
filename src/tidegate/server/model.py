"""The local model's process, one for the whole server: `python -m tidegate.server.model`, started by the root.

It ends by SIGTERM or SIGINT, when the root is gone (its lifeline), and by itself when llama.cpp's server cannot go on:
then with an exit code that makes the root start another. What no restart can mend, missing wheels or wrong weights, is
one line on standard error and `EXIT_REFUSED`.

While the model loads the gate is open already: a worker that comes early waits instead of failing.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from tidegate.admission.model_gate import SOCKET_NAME, Told
from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import CatalogueError, load_catalogue
from tidegate.server.descriptors import raise_descriptor_limit
from tidegate.server.lifeline import watch
from tidegate.server.model_door import Door, bind
from tidegate.server.model_llama import Llama, silence_native_code, warm_up
from tidegate.server.model_relay import EngineLost, Relay
from tidegate.server.model_slots import Claim, ModelSlots
from tidegate.server.model_weights import check_weights, find_weights
from tidegate.server.refusal import EXIT_REFUSED, StartRefused, print_faults
from tidegate.settings import Settings, SettingsError, load_settings
from tidegate.telemetry.logging import configure_logging, get_logger

_EXIT_LOST = os.EX_SOFTWARE


def main() -> NoReturn:
    """Runs the model as the settings say."""
    setproctitle("tidegate: model")
    settings: Settings | None = None
    code = 0
    try:
        settings = load_settings()
        configure_logging(settings, process="model")
        slots = _slot_count(load_catalogue(settings))
        weights = find_weights()
        listener = _bind(settings.data_dir)
        # One connection a waiting request and two a call.
        raise_descriptor_limit()
        silence_native_code()
        with asyncio.Runner() as runner:
            code = runner.run(run_model(weights, slots, listener))
            # No tidy end: it would wait for the model's threads, which nothing can stop.
            _leave(code)
    except (StartRefused, SettingsError, CatalogueError) as refusal:
        print_faults(refusal.faults, as_json=settings is not None and settings.in_production)
        code = EXIT_REFUSED
    except Exception:  # noqa: BLE001 - the edge of a process: what nobody foresaw is logged as everything else is
        get_logger(__name__).exception("the model's process failed")
        code = 1
    _leave(code)


async def run_model(weights: Path, slot_count: int, listener: socket.socket) -> int:
    """Serves the model's slots until it is told to end, or the model is lost. Returns the exit code.

    Raises `StartRefused` where the weights are not the right ones.
    """
    loop = asyncio.get_running_loop()
    told_to_end: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not told_to_end.done():
            told_to_end.set_result(code)

    def lose(loss: EngineLost) -> None:
        get_logger(__name__).error("the model was lost", reason=str(loss))
        end(_EXIT_LOST)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    watch(lambda: end(0))
    serving = loop.create_task(_serve(weights, slot_count, listener, lose))
    try:
        await asyncio.wait((serving, told_to_end), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        return await told_to_end
    except EngineLost as loss:
        lose(loss)
        return _EXIT_LOST
    finally:
        serving.cancel()


async def _serve(
    weights: Path, slot_count: int, listener: socket.socket, on_loss: Callable[[EngineLost], None]
) -> None:
    """Never returns. Raises `StartRefused` or `EngineLost` where the model cannot be started."""
    slots = ModelSlots(slot_count)
    relay: Relay | None = None

    def grant(claim: Claim) -> Told:
        assert relay is not None, "nothing is granted before the slots are open"
        return Told(base_url=relay.base_url, api_key=claim.token, slot=claim.granted.result())

    async with Door(slots, listener, grant):
        await asyncio.to_thread(check_weights, weights)
        engine = await asyncio.to_thread(Llama.start, weights, slot_count)
        await warm_up(engine)
        async with Relay(slots, engine, on_loss=on_loss) as relay:
            slots.open()
            await asyncio.Event().wait()


def _slot_count(catalogue: Catalogue) -> int:
    for upstream in catalogue.upstreams.values():
        if upstream.provider == "local":
            return upstream.max_concurrency
    raise StartRefused('upstreams: none has provider "local", so there is no model to run')


def _bind(data_dir: Path) -> socket.socket:
    path = data_dir.absolute() / SOCKET_NAME
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return bind(path)
    except OSError as error:
        raise StartRefused(
            f"TIDEGATE_DATA_DIR: the model's gate cannot be opened at {path}: {error.strerror}"
        ) from None


def _leave(code: int) -> NoReturn:
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
