"""What requests are served by: a catalogue, and what stands behind each of its upstreams.

It is one immutable value. A reload makes another and puts it in its place (`Gateway.serving`); a request takes the
value once, at its plan, and keeps it to its end. What an upstream *is in the midst of* (slots, breaker, what was learnt
of it) is shared by the values before and after, as far as it did not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.admission.slots import Slots
from tidegate.routing.breaker import Breaker
from tidegate.routing.catalogue import Catalogue, Upstream
from tidegate.upstream.provider import Provider


@dataclass(slots=True)
class Learnt:
    """What this process found out about an upstream. `refuses_usage_request`: it answered `stream_options` with a 400
    or 422, so it is not asked again.
    """

    refuses_usage_request: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """A catalogue in force. Each mapping has one value for each of its upstreams, by name."""

    catalogue: Catalogue
    slots: Mapping[str, Slots]
    providers: Mapping[str, Provider]
    breakers: Mapping[str, Breaker]
    learnt: Mapping[str, Learnt]

    def asks_usage(self, upstream: Upstream) -> bool:
        """Whether streams of this upstream are asked for their usage."""
        if upstream.usage_request == "auto":
            return not self.learnt[upstream.name].refuses_usage_request
        return upstream.usage_request == "always"
