"""This process as the root asks it: to serve by another catalogue, and to say how it stands."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

from tidegate.ledger.entry import utc_now
from tidegate.lifespan.facts import Facts
from tidegate.lifespan.road import Road
from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import CatalogueError, CatalogueSource, faults_of_replacing, parse_catalogue
from tidegate.settings import Settings
from tidegate.telemetry.health import HealthBoard
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)


class Served:
    """Implements `ServedProcess`.

    A reload replaces one reference, so a request sees all of it or nothing; those that run keep what they began with.
    Reloads that come together are done one after the other, in their order.
    """

    def __init__(self, settings: Settings, road: Road, health: HealthBoard, facts: Facts) -> None:
        self._settings = settings
        self._gateway = road.gateway
        self._servings = road.servings
        self._client = road.client
        self._health = health
        self._facts = facts
        self._started_at = utc_now()
        self._turn = asyncio.Lock()

    async def reload(self, source: CatalogueSource) -> str:
        """Serves by this catalogue from now on, with its secrets read anew, and returns its version.

        Raises `CatalogueError`: nothing changed.
        """
        async with self._turn:
            # It reads the files of keys.
            catalogue = await asyncio.to_thread(parse_catalogue, self._settings, source)
            before = self._gateway.serving
            if faults := faults_of_replacing(before.catalogue, catalogue, source):
                raise CatalogueError(faults)
            # Nothing is awaited from here until all of it is in force.
            self._gateway.serving = self._servings.of(catalogue, before=before)
            resized = self._servings.resize(catalogue)
            self._health.catalogue_version = catalogue.version
            for origin in _origins(before.catalogue) - _origins(catalogue):
                self._client.leave(origin)
            log.info("catalogue_replaced", catalogue_version=catalogue.version, before=before.catalogue.version)
            for slots in resized:
                await slots.announce()
            return catalogue.version

    def report(self) -> dict[str, Any]:
        """How this process stands. `requests` are those with an open entry, `slots` those in use, by upstream; `tasks`
        are those of its loop.
        """
        gateway = self._gateway
        serving = gateway.serving
        return {
            "state": self._health.state,
            "catalogue_version": serving.catalogue.version,
            "started_at": self._started_at.isoformat(),
            "draining": gateway.drain.draining,
            "requests": gateway.ledger.open_entries,
            "tasks": len(asyncio.all_tasks()),
            "slots": {name: slots.in_use for name, slots in sorted(self._servings.slots.items())},
            "breakers_open": sorted(name for name, breaker in serving.breakers.items() if breaker.is_open),
        }

    async def facts(self, request_id: str | None = None) -> dict[str, Any]:
        """What is so in this process, for `tidegate check`; with the entries of one request where it is named."""
        return await self._facts.gathered(request_id)


def _origins(catalogue: Catalogue) -> set[str]:
    urls = [urlsplit(upstream.base_url) for upstream in catalogue.upstreams.values() if upstream.base_url]
    return {f"{url.scheme}://{url.netloc}" for url in urls}
