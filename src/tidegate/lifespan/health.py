"""What a process asks of its dependencies when it is asked for its health."""

from collections.abc import Callable
from typing import Any

from tidegate import __version__
from tidegate.admission.model_gate import ModelGate
from tidegate.errors import Unavailable
from tidegate.lifespan.road import Road
from tidegate.lifespan.stores import Stores
from tidegate.settings import Settings
from tidegate.storage.redis import ping
from tidegate.telemetry.health import HealthBoard


def health_board(settings: Settings, stores: Stores, road: Road) -> HealthBoard:
    """What /health asks of this process."""
    gateway, flags = road.gateway, road.flags
    drain, ledger = gateway.drain, gateway.ledger
    board = HealthBoard(
        version=__version__,
        catalogue_version=gateway.catalogue.version,
        is_draining=lambda: drain.draining,
    )
    board.flagged = flags
    board.refuses_work = lambda: settings.limits.on_store_failure == "deny" and "limits" in flags

    async def check_database() -> None:
        await stores.database.ping()

    async def check_cache() -> str | None:
        if stores.redis is None:
            return "in this process"
        await ping(stores.redis)
        return None

    async def check_ledger() -> str | None:
        if ledger.is_behind:
            raise Unavailable("entries wait in the journal for the database")
        return None

    board.add("database", check_database)
    board.add("cache", check_cache, degrades_as="redis")
    board.add("ledger", check_ledger)
    for slots in gateway.slots.values():
        if isinstance(slots, ModelGate):
            board.add("model", _model_check(slots), must_have_answered=True)
    return board


def _model_check(gate: ModelGate) -> Callable[[], Any]:
    async def check_model() -> None:
        status = await gate.status()
        if status is None or not status.is_ready:
            raise Unavailable("the model is starting")

    return check_model
