"""What a process needs to serve inference, in one typed place. Opened and closed by the lifespan."""

from dataclasses import dataclass
from typing import Protocol

from tidegate.admission.gate import Gate
from tidegate.inference.observation import RoadMetrics
from tidegate.inference.response_cache import ResponseCache
from tidegate.inference.serving import Serving
from tidegate.ledger.refusals import Refusals
from tidegate.ledger.reservation import Ledger
from tidegate.upstream.tokenizer import Tokenizer


class DrainState(Protocol):
    @property
    def draining(self) -> bool:
        """Whether this process is leaving: it takes no new request."""
        ...


@dataclass(slots=True)
class Gateway:
    """One process's road. `serving` alone changes while it runs: by a reload, at once and as a whole. Whoever reads
    more than one thing of it takes it once. `observed` is told of each terminal entry.
    """

    serving: Serving
    ledger: Ledger
    refusals: Refusals
    gate: Gate
    tokenizer: Tokenizer
    drain: DrainState
    cache: ResponseCache
    end_user_headers: tuple[str, ...] = ()
    observed: RoadMetrics | None = None
