"""Making the `Serving` of a catalogue: the first, and by each reload the next.

What an upstream is in the midst of goes on as far as it is still the same. Its slots go on as long as its name does,
and their size is the newest catalogue's, for requests of every catalogue: a failover of an older request must not bring
an old size back. Its breaker, and what was learnt of it, go on as long as it is the same place with the same key.
"""

import weakref

from tidegate.admission.model_gate import SOCKET_NAME, ModelGate
from tidegate.admission.slots import Capacity, Slots, StoreSlots
from tidegate.admission.steps import Steps
from tidegate.inference.serving import Learnt, Serving
from tidegate.routing.breaker import Breaker
from tidegate.routing.catalogue import Catalogue, Upstream
from tidegate.settings import Settings
from tidegate.upstream.echo import EchoProvider
from tidegate.upstream.local import check_local_body
from tidegate.upstream.openai import OpenAIProvider, UpstreamClient
from tidegate.upstream.provider import Provider


class Servings:
    """Makes one process's servings, one after the other.

    >>> serving = servings.of(catalogue)
    >>> serving = servings.of(changed, before=serving)
    >>> for slots in servings.resize(changed):
    ...     await slots.announce()
    """

    def __init__(self, settings: Settings, steps: Steps, client: UpstreamClient) -> None:
        self._socket = settings.data_dir / SOCKET_NAME
        self._steps = steps
        self._client = client
        # Also those of upstreams that are gone, while a request is served by them: the name may come back.
        self._slots: weakref.WeakValueDictionary[str, StoreSlots | ModelGate] = weakref.WeakValueDictionary()

    @property
    def slots(self) -> dict[str, Slots]:
        """The slots that requests of this process may hold, by upstream; also of upstreams that are gone."""
        return dict(self._slots)

    def of(self, catalogue: Catalogue, *, before: Serving | None = None) -> Serving:
        """What a catalogue is served by. Slots that there are keep their size until `resize`."""
        slots: dict[str, Slots] = {}
        providers: dict[str, Provider] = {}
        breakers: dict[str, Breaker] = {}
        learnt: dict[str, Learnt] = {}
        for name, upstream in catalogue.upstreams.items():
            was = None if before is None else before.catalogue.upstreams.get(name)
            slots[name] = self._slots_of(upstream)
            if before is None or was is None or not _is_same_place(was, upstream):
                providers[name] = _provider(upstream, self._client)
                breakers[name], learnt[name] = Breaker(upstream.breaker), Learnt()
                continue
            providers[name], learnt[name] = before.providers[name], before.learnt[name]
            breakers[name] = before.breakers[name] if was.breaker == upstream.breaker else Breaker(upstream.breaker)
        return Serving(catalogue, slots, providers, breakers, learnt)

    def resize(self, catalogue: Catalogue) -> list[StoreSlots]:
        """Gives all slots the size that the catalogue says, at once. Returns those whose store is to be told."""
        changed = []
        for name, upstream in catalogue.upstreams.items():
            slots = self._slots[name]
            if isinstance(slots, ModelGate):
                slots.resize(queue_length=upstream.queue.length, queue_deadline_s=upstream.queue.deadline_s)
            elif slots.resize(_capacity(upstream)):
                changed.append(slots)
        return changed

    def _slots_of(self, upstream: Upstream) -> StoreSlots | ModelGate:
        known = self._slots.get(upstream.name)
        if known is not None and isinstance(known, ModelGate) == (upstream.provider == "local"):
            return known
        made: StoreSlots | ModelGate
        if upstream.provider == "local":
            made = ModelGate(
                self._socket,
                upstream=upstream.name,
                queue_length=upstream.queue.length,
                queue_deadline_s=upstream.queue.deadline_s,
                steps=self._steps,
            )
        else:
            made = StoreSlots(self._steps, upstream.name, _capacity(upstream))
        self._slots[upstream.name] = made
        return made


def _is_same_place(was: Upstream, now: Upstream) -> bool:
    return (was.provider, was.base_url, was.api_key) == (now.provider, now.base_url, now.api_key)


def _capacity(upstream: Upstream) -> Capacity:
    return Capacity(upstream.max_concurrency, upstream.queue.length, upstream.queue.deadline_s)


def _provider(upstream: Upstream, client: UpstreamClient) -> Provider:
    if upstream.provider == "echo":
        return EchoProvider()
    if upstream.provider == "local":
        return OpenAIProvider(client, streams_only=True, check=check_local_body)
    return OpenAIProvider(client)
