"""What a process needs to serve inference, in one typed place. Opened and closed by the lifespan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tidegate.admission.gate import Gate
from tidegate.admission.slots import Slots
from tidegate.inference.response_cache import ResponseCache
from tidegate.ledger.refusals import Refusals
from tidegate.ledger.reservation import Ledger
from tidegate.routing.breaker import Breaker
from tidegate.routing.catalogue import Catalogue, Upstream
from tidegate.upstream.provider import Provider
from tidegate.upstream.tokenizer import Tokenizer


class DrainState(Protocol):
    @property
    def draining(self) -> bool:
        """Whether this process is leaving: it takes no new request."""
        ...


@dataclass(slots=True)
class Gateway:
    """One process's road. `catalogue` is immutable; a request keeps the one it began with.

    `refuses_usage_request` are upstreams that answered `stream_options` with a 400 or 422: learnt, not asked again.
    """

    catalogue: Catalogue
    ledger: Ledger
    refusals: Refusals
    gate: Gate
    slots: Mapping[str, Slots]
    providers: Mapping[str, Provider]
    breakers: Mapping[str, Breaker]
    tokenizer: Tokenizer
    drain: DrainState
    cache: ResponseCache
    end_user_headers: tuple[str, ...] = ()
    refuses_usage_request: set[str] = field(default_factory=set)

    def asks_usage(self, upstream: Upstream) -> bool:
        """Whether streams of this upstream are asked for their usage."""
        if upstream.usage_request == "auto":
            return upstream.name not in self.refuses_usage_request
        return upstream.usage_request == "always"
