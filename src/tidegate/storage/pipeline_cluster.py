"""The gate's connections to a Redis Cluster: a pipelined one to each master, each call to the one of its key's slot.

Invariants:
- A key's hash tag says its slot (CRC16 of the tag), and the map says whose that is. It is asked for at the start
  (CLUSTER SLOTS), every 5 s, after a MOVED, and while a master of it is not connected.
- A call is sent again only where a node said that it did nothing: MOVED and ASK are followed, at most three times a
  call, within the caller's deadline. A script is told the `run_id` of the node that runs it, also then.
- A node that is away is away for its own keys, whose calls end with `NodeGone` at once; the others' are not concerned.
  `StoreGone` itself means all of it: no node is connected, or the cluster says that it is down.
- A node is named by the cluster, and dialled with the password, the user and the TLS of the URL.
"""

import asyncio
import dataclasses
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio

from tidegate.storage.cluster_slots import ASK_SLOTS, SLOTS, SlotRange, ask_slots, ranges_of, slot_of
from tidegate.storage.pipeline import CONNECT_TIMEOUT_S, SILENT_S, PipelinedRedis
from tidegate.storage.pipeline_wire import (
    Address,
    Argument,
    NodeGone,
    ScriptError,
    StoreGone,
    Taker,
)
from tidegate.telemetry.logging import get_logger

LOOK_EVERY_S = 5.0
# While a master is not connected: its replica may have taken its place.
LOOK_AGAIN_S = 0.25
# However many calls are moved, the map is asked for so often.
_LOOK_AT_MOST_EVERY_S = 0.05
_MOST_REDIRECTS = 3
# The slots of a node of a cluster lie close enough for a tag that falls on it to be found soon.
_MOST_TAGS_TRIED = 4096

log = get_logger(__name__)


class _Node(PipelinedRedis):
    """A master's connection, kept by its own task. `is_tried` once it was dialled for the first time."""

    def __init__(self, address: Address, scripts: Mapping[str, str], **options: Any) -> None:
        super().__init__(address, **options)
        self.address = address
        self.is_tried = asyncio.Event()
        self.keeping: asyncio.Task[None] | None = None
        self._load(scripts)

    async def keep(self) -> None:
        async with self._kept():
            self.is_tried.set()
            await asyncio.Event().wait()


class PipelinedCluster:
    """One process's connections to a cluster; used as `PipelinedRedis` is.

    >>> async with PipelinedCluster.running(url, client_name="tidegate", scripts={"take": TAKE}) as redis:
    ...     redis.hand_script(taker, "take", "tidegate:{w:1}", "take", payload)

    It is connected where any node is. Listeners in `on_connected` are called for each node that stands, those in
    `on_lost` when the last one was lost. `run_id` names all nodes' together.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        client_name: str,
        scripts: Mapping[str, str],
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """Raises `ValueError` where the URL cannot be read."""
        self.on_connected: list[Callable[[], None]] = []
        self.on_lost: list[Callable[[], None]] = []
        self.redirects = 0
        self._seed = url if isinstance(url, Address) else Address.of(url)
        self._scripts = scripts
        self._client_name = client_name
        self._connect_timeout_s = connect_timeout_s
        self._options = {"client_name": client_name, "connect_timeout_s": connect_timeout_s, "silent_s": silent_s}
        self._nodes: dict[tuple[str, int], _Node] = {}
        self._owners: list[_Node | None] = [None] * SLOTS
        # Slots that are on their way, and to whom: what a call was sent on by, with ASK.
        self._moving: dict[int, _Node] = {}
        self._tags: dict[_Node, str] = {}
        self._layout = ""
        self._is_look_due = asyncio.Event()
        self._is_ended = False
        self._tells_silence = True

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        url: str | Address,
        *,
        client_name: str,
        scripts: Mapping[str, str],
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        silent_s: float = SILENT_S,
    ) -> AsyncIterator[Self]:
        """Tries to connect for at most twice `connect_timeout_s`, then goes on trying behind: the map, and the nodes.

        A cluster that is away is no error here.
        """
        cluster = cls(
            url, client_name=client_name, scripts=scripts, connect_timeout_s=connect_timeout_s, silent_s=silent_s
        )
        async with cluster.kept():
            yield cluster

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """`running`, of one that was made before."""
        looking = None
        try:
            await self._look()
            await asyncio.gather(*(node.is_tried.wait() for node in self._nodes.values()))
            looking = asyncio.create_task(self._keep_looking(), name=f"redis cluster {self._client_name}")
            yield
        finally:
            self._is_ended = True
            tasks = [node.keeping for node in self._nodes.values() if node.keeping is not None]
            tasks += [] if looking is None else [looking]
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        return any(node.is_connected for node in self._nodes.values())

    @property
    def is_whole(self) -> bool:
        """Whether every slot has a master that is connected."""
        return all(node is not None and node.is_connected for node in set(self._owners))

    @property
    def run_id(self) -> str | None:
        return "+".join(sorted(node.run_id or "" for node in self._standing())) or None

    @property
    def layout(self) -> str:
        """Another one whenever a slot is known to be another master's, or on its way to one."""
        if not self._layout:
            owners = ("" if node is None else str(node.address) for node in self._owners)
            whose = ((name, sum(1 for _ in slots)) for name, slots in itertools.groupby(owners))
            moving = sorted((slot, str(node.address)) for slot, node in self._moving.items())
            self._layout = hashlib.sha256(repr((list(whose), moving)).encode()).hexdigest()
        return self._layout

    def runs(self) -> dict[str, str]:
        """The `run_id` of each master that is connected, by a hash tag that falls on it: the same in every process."""
        runs = {}
        for node in {owner for owner in self._owners if owner is not None and owner.is_connected}:
            tag = self._tags.get(node) or self._tag_on(node)
            if tag is not None and node.run_id is not None:
                self._tags[node] = tag
                runs[tag] = node.run_id
        return runs

    def send(self, *args: Argument) -> asyncio.Future[Any]:
        """`PipelinedRedis.send`, to the node of the first argument with a hash tag, to any where none has one."""
        keyed = next((each for each in args[1:] if isinstance(each, str) and "{" in each), None)
        if keyed is None:
            standing = self._standing()
            if not standing:
                raise StoreGone("no node of the cluster is connected")
            return random.choice(standing).send(*args)  # noqa: S311 - spreads load, guards nothing
        return self.send_by(keyed, *args)

    def send_by(self, key: str, *args: Argument) -> asyncio.Future[Any]:
        """`send`, to the node of this key."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._route(slot_of(key), future, lambda node, taker: node.hand(taker, *args))
        return future

    def hand_script(self, taker: Taker, name: str, key: str, op: str, payload: bytes) -> None:
        """`PipelinedRedis.hand_script`, to the node of the key."""
        self._route(slot_of(key), taker, lambda node, told: node.hand_script(told, name, key, op, payload))

    async def ask_each(self, *args: Argument) -> list[Any]:
        """What every node answers that is connected, after all that was sent to it before."""
        return await asyncio.gather(*(node.send(*args) for node in self._standing()))

    async def dial(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connects to any node: to one that answers, where one does. Raises `OSError`."""
        addresses = [node.address for node in self._standing()] or [self._seed]
        await random.choice(addresses).dial(protocol)  # noqa: S311 - spreads load, guards nothing

    def owner(self, key: str) -> tuple[str, int]:
        """Host and port of the master of this key. Raises `StoreGone` where it has none that is connected."""
        node = self._owners[slot_of(key)]
        if node is None or not node.is_connected:
            raise self._gone("the node of this key is not connected")
        return node.address.host, node.address.port

    # Whose a slot is

    def _route(self, slot: int, taker: Taker, ask: "_Ask") -> None:
        node = self._owners[slot]
        if node is None or not node.is_connected:
            self._is_look_due.set()
            raise self._gone("the node of this key is not connected")
        ask(node, _Routed(self, slot, node, taker, ask))

    def redirect(self, error: ScriptError, slot: int, answered: "_Node") -> "_Node | None":
        """To whom a node sends a call; None where it says something else. It is asked at once where this is by ASK.

        Raises `StoreGone` where that is not connected.
        """
        code, _, rest = str(error).partition(" ")
        if code not in ("MOVED", "ASK"):
            return None
        self.redirects += 1
        host, _, port = rest.rpartition(" ")[2].rpartition(":")
        node = self._node(host or answered.address.host, int(port))
        if code == "MOVED":
            self._owners[slot] = node
            self._forget_layout()
            self._is_look_due.set()
        elif self._moving.get(slot) is not node:
            self._moving[slot] = node
            self._forget_layout()
        if not node.is_connected:
            raise self._gone("the key went to a node that is not connected yet")
        if code == "ASK":
            node.send("ASKING").add_done_callback(_looked_at)
        return node

    def told(self, error: Exception) -> Exception:
        """What an error of one node means to who asked the cluster."""
        if isinstance(error, ScriptError) and error.code in ("MOVED", "ASK", "TRYAGAIN"):
            return NodeGone(f"the key is on its way: {error.code}")
        if isinstance(error, ScriptError) and error.code == "CLUSTERDOWN":
            self._is_look_due.set()
            # One slot that nobody has, or all of it.
            return NodeGone(str(error)) if "not served" in str(error) else StoreGone(str(error))
        if isinstance(error, StoreGone) and not isinstance(error, NodeGone):
            return self._gone(str(error))
        return error

    def _gone(self, reason: str) -> StoreGone:
        return NodeGone(reason) if self.is_connected else StoreGone(reason)

    def _standing(self) -> list["_Node"]:
        return [node for node in self._nodes.values() if node.is_connected]

    def _tag_on(self, node: "_Node") -> str | None:
        tags = (f"n:{number}" for number in itertools.islice(itertools.count(), _MOST_TAGS_TRIED))
        return next((tag for tag in tags if self._owners[slot_of(f"{{{tag}}}")] is node), None)

    def _node(self, host: str, port: int) -> "_Node":
        node = self._nodes.get((host, port))
        if node is None:
            address = dataclasses.replace(self._seed, host=host, port=port, path=None)
            node = self._nodes[host, port] = _Node(address, self._scripts, **self._options)
            node.on_connected.append(lambda: self._tell(self.on_connected))
            node.on_lost.append(self._on_node_lost)
            if not self._is_ended:
                node.keeping = asyncio.create_task(node.keep(), name=f"redis node {host}:{port}")
        return node

    def _on_node_lost(self) -> None:
        self._is_look_due.set()
        if not self.is_connected:
            self._tell(self.on_lost)

    def _tell(self, listeners: Iterable[Callable[[], None]]) -> None:
        for listener in list(listeners):
            listener()

    # The map

    async def _keep_looking(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S if self.is_whole else LOOK_AGAIN_S):
                    await self._is_look_due.wait()
            except TimeoutError:
                pass
            self._is_look_due.clear()
            try:
                await self._look()
            except Exception:
                # An edge: whatever it was, the map is asked for again.
                log.exception("redis_map_failed")
            await asyncio.sleep(_LOOK_AT_MOST_EVERY_S)

    async def _look(self) -> None:
        """Learns the map from the first that tells it: a node that is connected, else the one of the URL, else any."""
        standing = self._standing()
        random.shuffle(standing)
        known = [self._seed, *(node.address for node in self._nodes.values())]
        asking = [*(self._asked_of(node) for node in standing)] or [self._dialled(address) for address in known]
        reason = ""
        for ask in asking:
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    ranges = await ask()
            except (OSError, StoreGone, ScriptError, TimeoutError) as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            else:
                self._learn(ranges)
                self._tells_silence = True
                return
        if self._tells_silence:
            self._tells_silence = False
            log.warning("redis_map_unknown", client=self._client_name, reason=reason)

    def _asked_of(self, node: "_Node") -> "_AskMap":
        async def ask() -> list[SlotRange]:
            return ranges_of(await node.send(*ASK_SLOTS), node.address.host)

        return ask

    def _dialled(self, address: Address) -> "_AskMap":
        return lambda: ask_slots(address, client_name=self._client_name, within_s=self._connect_timeout_s)

    def _learn(self, ranges: Sequence[SlotRange]) -> None:
        owners: list[_Node | None] = [None] * SLOTS
        for each in ranges:
            owners[each.first : each.last + 1] = [self._node(each.host, each.port)] * (each.last + 1 - each.first)
        self._owners = owners
        self._moving = {slot: node for slot, node in self._moving.items() if owners[slot] is not node}
        self._forget_layout()
        wanted = {*owners, *self._moving.values()}
        for name, node in list(self._nodes.items()):
            if node not in wanted:
                del self._nodes[name]
                if node.keeping is not None:
                    node.keeping.cancel()

    def _forget_layout(self) -> None:
        self._tags.clear()
        self._layout = ""


_Ask = Callable[[_Node, Taker], None]
_AskMap = Callable[[], Awaitable[list[SlotRange]]]


class _Routed:
    """A call on its way: where a node sends it on, it goes on; any other answer is its taker's.

    It is sent to another connection than the one that is being read.
    """

    __slots__ = ("_ask", "_cluster", "_left", "_node", "_slot", "_taker")

    def __init__(self, cluster: PipelinedCluster, slot: int, node: _Node, taker: Taker, ask: _Ask) -> None:
        self._cluster = cluster
        self._slot = slot
        self._node = node
        self._taker = taker
        self._ask = ask
        self._left = _MOST_REDIRECTS

    def done(self) -> bool:
        return self._taker.done()

    def set_result(self, answer: Any, /) -> None:
        self._taker.set_result(answer)

    def set_exception(self, error: Exception, /) -> None:
        if self._left and isinstance(error, ScriptError):
            self._left -= 1
            try:
                node = self._cluster.redirect(error, self._slot, self._node)
                if node is not None:
                    self._node = node
                    self._ask(node, self)
                    return
            except StoreGone as gone:
                error = gone
        self._taker.set_exception(self._cluster.told(error))

    def exception(self) -> None:
        if self._taker.done():
            self._taker.exception()


def _looked_at(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()
