"""What a process asks of its dependencies when it is asked for its health."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tidegate import __version__
from tidegate.admission.model_gate import ModelGate
from tidegate.errors import Unavailable
from tidegate.inference.gateway import Gateway
from tidegate.ledger.entry import utc_now
from tidegate.ledger.reservation import Ledger
from tidegate.lifespan.road import Road
from tidegate.lifespan.stores import Stores
from tidegate.routing.breaker import Breaker
from tidegate.settings import Settings
from tidegate.storage.redis import ping
from tidegate.telemetry.health import HealthBoard
from tidegate.telemetry.loop_lag import LoopLag

_MODES = {
    "database": "Requests run; their entries wait in the journal. Callers who are not known yet are not served.",
    "ledger": "Entries wait in the journal until the database takes them.",
    "redis": "Answers and reports are not cached, and limits are judged without it.",
    "model": "The local model does not answer; other models do.",
}
_WITHOUT_LIMITS = {
    "local": "Each worker judges by its share of every limit.",
    "deny": "Requests are refused until limits can be judged.",
    "allow": "Requests are not judged by limits.",
}


def health_board(settings: Settings, stores: Stores, road: Road, lag: LoopLag) -> HealthBoard:
    """What /health asks of this process."""
    gateway, flags = road.gateway, road.flags
    drain, ledger = gateway.drain, gateway.ledger
    board = HealthBoard(
        version=__version__,
        catalogue_version=gateway.serving.catalogue.version,
        is_draining=lambda: drain.draining,
    )
    board.flagged = flags
    board.details = _details(gateway, lag)
    board.modes = _MODES | {"limits": _WITHOUT_LIMITS[settings.limits.on_store_failure]}
    board.details_are_open = not settings.in_production
    board.details_port = settings.server.management_port
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
    if _model_gate(gateway) is not None:
        # It comes and goes by a restart alone.
        board.add("model", _model_check(gateway), must_have_answered=True)
    return board


def _details(gateway: Gateway, lag: LoopLag) -> Callable[[], dict[str, Any]]:
    started = time.monotonic()

    def details() -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - started, 3),
            "loop": {"last_ms": round(lag.last_s * 1000, 3), "worst_ms": round(lag.worst_s * 1000, 3)},
            "journal": _journal(gateway.ledger),
            "breakers": {name: _breaker(each) for name, each in sorted(gateway.serving.breakers.items())},
        }

    return details


def _journal(ledger: Ledger) -> dict[str, Any]:
    since = ledger.oldest_waiting_at
    oldest_s = None if since is None else max(0.0, round((utc_now() - since).total_seconds(), 3))
    return {"open": ledger.open_entries, "waiting": ledger.waiting_entries, "oldest_s": oldest_s}


def _breaker(breaker: Breaker) -> dict[str, Any]:
    for_s = breaker.in_state_for_s
    since = None if for_s is None else (utc_now() - timedelta(seconds=for_s)).isoformat(timespec="seconds")
    return {"state": breaker.state, "since": since}


def _model_gate(gateway: Gateway) -> ModelGate | None:
    """The local model's gate, as the catalogue in force has it."""
    return next((slots for slots in gateway.serving.slots.values() if isinstance(slots, ModelGate)), None)


def _model_check(gateway: Gateway) -> Callable[[], Any]:
    async def check_model() -> None:
        gate = _model_gate(gateway)
        status = None if gate is None else await gate.status()
        if status is None or not status.is_ready:
            raise Unavailable("the model is starting")

    return check_model
