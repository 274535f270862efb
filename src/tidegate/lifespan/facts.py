"""What is so in this process, for `tidegate check`: read from the objects that serve, not from what was configured.

No secret is in it: of keys there are estimates, of settings there are digests. Asked rarely, by the root; what takes
CPU is done in a thread, and what a dependency must be asked for has a bound.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from fastapi import FastAPI
from pydantic_settings import BaseSettings
from sqlalchemy.pool import QueuePool

from tidegate import __version__
from tidegate.admission.slots import StoreSlots
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyrings
from tidegate.lifespan.facts_of_routes import facts_of_routes
from tidegate.lifespan.facts_of_stores import facts_of_database, facts_of_ledger, facts_of_redis
from tidegate.lifespan.road import Road
from tidegate.lifespan.stores import Stores
from tidegate.routing.catalogue import Catalogue, Upstream
from tidegate.settings import Settings, unknown_variables
from tidegate.settings.clear_text import spoken_in_the_clear
from tidegate.settings.digests import settings_digests
from tidegate.settings.secrets import entropy_bits, weakness
from tidegate.telemetry.logging import form_of_lines
from tidegate.telemetry.loop_lag import LoopLag
from tidegate.upstream.openai import OpenAIProvider, UpstreamClient

_MOST_MODELS = 10


@dataclass
class Facts:
    """One process's. `gathered` may be asked for again and again."""

    settings: Settings
    app: FastAPI
    stores: Stores
    road: Road
    authenticator: Authenticator
    keyrings: Keyrings
    lag: LoopLag

    async def gathered(self, request_id: str | None = None) -> dict[str, Any]:
        """As JSON takes it, with the entries of one request where it is named.

        Bounded by what the database and Redis are given, and raises nothing of theirs.
        """
        database, redis, ledger, routes = await asyncio.gather(
            facts_of_database(self.stores.database),
            facts_of_redis(self.stores.redis),
            facts_of_ledger(self.stores.database, request_id),
            asyncio.to_thread(lambda: self._routes),
        )
        settings = self.settings
        return {
            "pid": os.getpid(),
            "parent_pid": os.getppid(),
            "version": __version__,
            "environment": settings.environment,
            "clock": time.time(),
            "settings": self._settings_read | {"in_the_clear": self._in_the_clear()},
            "routes": routes,
            "database": database
            | {"max_replicas": settings.database.max_replicas, "pool": self._pool()}
            | {"pooler": settings.database.pooler},
            "redis": redis,
            "ledger": ledger,
            "requests": self.road.ledger.open_entries,
            "limiter": self._limiter(),
            "caches": self._caches(),
            "tokens": self._tokens,
            "http": {
                "origins": list(settings.http.cors_origins),
                "trusted_proxies": list(settings.http.trusted_proxies),
                "max_body_bytes": settings.http.max_body_bytes,
            },
            "upstreams": {name: self._upstream(each) for name, each in self._catalogue.upstreams.items()},
            "free_models": _free_models(self._catalogue),
            "client": self._client(),
            "drain": {"drain_s": settings.server.drain_s, "linger_s": settings.server.linger_s},
            "workers_setting": settings.server.workers,
            "loop": {
                "last_ms": round(self.lag.last_s * 1000, 1),
                "worst_ms": round(self.lag.worst_s * 1000, 1),
                "worst_ever_ms": round(self.lag.worst_ever_s * 1000, 1),
                "stall_log_s": settings.server.stall_log_s,
            },
            "logs": form_of_lines(),
        }

    @property
    def _catalogue(self) -> Catalogue:
        return self.road.gateway.serving.catalogue

    @cached_property
    def _routes(self) -> dict[str, Any]:
        return facts_of_routes(self.app)

    @cached_property
    def _settings_read(self) -> dict[str, Any]:
        kind = type(self.settings)
        return {
            "digests": settings_digests(self.settings),
            "is_typed": issubclass(kind, BaseSettings),
            "is_frozen": bool(kind.model_config.get("frozen")),
            "forbids_unknown": kind.model_config.get("extra") == "forbid",
            "unknown": unknown_variables(),
        }

    def _in_the_clear(self) -> list[str]:
        # A reload may have brought another upstream.
        return spoken_in_the_clear(self.settings, self._catalogue.base_urls)

    @cached_property
    def _tokens(self) -> dict[str, Any]:
        keys = [(kid, secret.decode("utf-8", "replace")) for kid, secret in self.keyrings.jwt.items()]
        return {
            "keys": [{"kid": kid, "bits": entropy_bits(secret), "weakness": weakness(secret)} for kid, secret in keys],
            "are_from_settings": {kid for kid, _ in self.settings.auth.jwt_keys} == {kid for kid, _ in keys},
            "algorithm": self.authenticator.tokens.keys.algorithm,
            "access_token_s": self.authenticator.tokens.lifetime_s,
            "sign_in_days": self.settings.auth.sign_in_days,
        }

    def _pool(self) -> dict[str, int] | None:
        pool = self.stores.database.engine.pool
        if not isinstance(pool, QueuePool):
            return None
        return {"size": pool.size(), "overflow": pool._max_overflow}  # noqa: SLF001 - told nowhere else

    def _limiter(self) -> dict[str, Any]:
        desk = self.road.admission.desk
        return {
            "shared": desk.shared is not None,
            "run_id": None if desk.shared is None else desk.shared.run_id,
            "is_away": desk.is_away,
            "workers_seen": desk.workers,
            "judged_alone": desk.judged_alone,
        }

    def _caches(self) -> dict[str, bool]:
        return {
            "reports_in_redis": self.stores.read_through.is_shared,
            "answers_in_redis": self.road.gateway.cache.is_shared,
        }

    def _upstream(self, upstream: Upstream) -> dict[str, Any]:
        slots = self.road.gateway.serving.slots[upstream.name]
        is_stored = isinstance(slots, StoreSlots)
        return {
            "provider": upstream.provider,
            "slots": slots.capacity.slots if isinstance(slots, StoreSlots) else upstream.max_concurrency,
            "queue_length": slots.capacity.queue_length if isinstance(slots, StoreSlots) else upstream.queue.length,
            "queue_deadline_s": upstream.queue.deadline_s,
            "kept_by": "store" if is_stored else "root",
            "in_use": slots.in_use,
            "waiting": slots.waiting,
            "timeouts": upstream.timeouts.model_dump(),
        }

    def _client(self) -> dict[str, Any]:
        providers = self.road.gateway.serving.providers.values()
        used = [provider.client for provider in providers if isinstance(provider, OpenAIProvider)]
        own = self.road.client
        return {
            "clients": len({id(client) for client in (own, *used)}),
            "providers": len(used),
            "is_pooled": isinstance(own, UpstreamClient),
            "is_closed": own.is_closed,
        }


def _free_models(catalogue: Catalogue) -> list[str]:
    """Some that cost nothing: those that echo upstreams alone serve."""
    names = (
        model.name
        for model in catalogue.models
        if not model.name.endswith("*") and {attempt.upstream.provider for attempt in model.attempts} == {"echo"}
    )
    return list(islice(names, _MOST_MODELS))
