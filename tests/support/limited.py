"""A gateway of several worker processes on PostgreSQL and Redis, and fresh keys with limits for it.

Keys and limits are written into the database as the command line writes them, which costs an interpreter's start less.

    async with LimitedGateway.running(folder, plan) as limited:
        key = await limited.key(a_meter("requests", 10, "minute"))
        answer = await limited.ask(key, "m")
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self, cast

import psutil
import redis as redis_client
from sqlalchemy import func, select

from tests.support.caller import Caller, Reply
from tests.support.client import ConnectionEnded, RawClient
from tests.support.server import _SECRETS as SECRETS_OF_GATEWAYS
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.accounts.schemas import NewKey
from tidegate.auth.keyring import Keyring
from tidegate.ledger.models import LedgerEntry
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.models import LimitRow
from tidegate.limits.values import Action, Meter, Overrun, Window, exact_amount
from tidegate.storage.database import Database


@dataclass(frozen=True)
class LimitedKey:
    """A key of its own service account."""

    id: uuid.UUID
    secret: str


@dataclass(frozen=True)
class Answered:
    """What one request was answered, and how long that took, in seconds. `status` 0: no whole answer."""

    status: int
    code: str | None
    took_s: float
    reply: Reply | None = None

    @property
    def headers(self) -> dict[str, str]:
        return self.stream.head.headers

    @property
    def stream(self) -> Reply:
        """The whole answer."""
        assert self.reply is not None, "there was no whole answer"
        return self.reply


class LimitedGateway:
    """`process` is the gateway; everything else asks it, or its database."""

    def __init__(self, process: GatewayProcess, database: Database) -> None:
        self.process = process
        self.database = database
        pepper = dict(SECRETS_OF_GATEWAYS)["TIDEGATE_AUTH__API_KEY_PEPPERS"].partition(":")
        self._keys = ApiKeys(database, Keyring({pepper[0]: pepper[2].encode()}))

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path, plan: GatewayPlan) -> AsyncIterator[Self]:
        assert plan.database_url is not None
        async with GatewayProcess(folder, plan) as process:
            database = await Database.open(plan.database_url)
            try:
                yield cls(process, database)
            finally:
                await database.aclose()

    async def key(self, *limits: MeteredAmount, weight: int = 1) -> LimitedKey:
        created = await self._keys.create(NewKey(name="limited", limits=limits, queue_weight=weight))
        return LimitedKey(created.id, created.secret)

    async def limit(
        self,
        key: LimitedKey,
        meter: Meter,
        amount: int | str,
        window: Window | None,
        *,
        on_overrun: Overrun = "finish",
        action: Action = "refuse",
    ) -> None:
        """One more limit of a key that did not call yet."""
        async with self.database.transaction() as session:
            session.add(
                LimitRow(
                    workspace_id=DEFAULT_WORKSPACE_ID,
                    scope="key",
                    subject=str(key.id),
                    meter=meter,
                    window=window,
                    amount=exact_amount(meter, amount),
                    action=action,
                    on_overrun=on_overrun,
                )
            )

    def caller(self, key: LimitedKey) -> Caller:
        return Caller(self.process.base_url, key.secret)

    async def ask(self, key: LimitedKey, model: str = "m", **body: Any) -> Answered:
        """One chat request of five tokens at most, unless `body` says more, on a connection of its own."""
        began = time.monotonic()
        try:
            reply = await self.caller(key).chat("limited", model=model, **{"stream": False, "max_tokens": 5, **body})
        except (OSError, ConnectionEnded, TimeoutError):
            return Answered(0, None, time.monotonic() - began)
        code = None if reply.status == 200 else reply.error["code"]
        return Answered(reply.status, code, time.monotonic() - began, reply)

    async def ask_at_once(self, key: LimitedKey, count: int, model: str = "m", **body: Any) -> list[Answered]:
        return list(await asyncio.gather(*(self.ask(key, model, **body) for _ in range(count))))

    async def stream(self, client: RawClient, key: LimitedKey, model: str, **body: Any) -> None:
        """Sends a streamed request; nothing of its answer is read."""
        await self.caller(key).ask(client, "limited", model=model, **{"max_tokens": 5, **body})

    def client(self) -> RawClient:
        return RawClient(self.process.base_url)

    async def entries(self, key: LimitedKey, count: int) -> Sequence[LedgerEntry]:
        """The key's entries, once there are so many."""

        async def found() -> Sequence[LedgerEntry]:
            async with self.database.session() as session:
                query = select(LedgerEntry).where(LedgerEntry.key_id == key.id).order_by(LedgerEntry.started_at)
                rows = (await session.scalars(query)).all()
            return rows if len(rows) >= count else ()

        return await eventually(found, within_s=20, poll_s=0.05, what=f"{count} entries") if count else ()

    async def spent(self, key: LimitedKey) -> Decimal:
        """What the ledger has of a key, in USD."""
        async with self.database.session() as session:
            total = await session.scalar(select(func.sum(LedgerEntry.cost)).where(LedgerEntry.key_id == key.id))
        return total or Decimal(0)

    async def degraded(self) -> list[str]:
        """What one worker's /health says is lost: whichever took the connection."""
        async with asyncio.timeout(10), self.client() as client:
            await client.send("GET", "/health", headers={"connection": "close"})
            await client.head()
            lost: list[str] = json.loads(await client.body())["degraded"]
        return lost


def a_meter(meter: Meter, amount: int | str, window: Window | None = None) -> MeteredAmount:
    return MeteredAmount(meter=meter, window=window, amount=amount)


def peak(
    upstream: ScriptedUpstream,
    model: str,
    *,
    between: tuple[float, float] = (float("-inf"), float("inf")),
    slack_s: float = 0.02,
) -> int:
    """The most requests for a model that an upstream had at once, `between` two moments.

    A request counts from `slack_s` after it came: of a hang-up and the next request, which stand in two sockets at the
    same moment, the upstream may read the request first.
    """
    moments: list[tuple[float, int]] = []
    for request in upstream.requests:
        if request.body["model"] == model:
            ends = [at for at in (request.done_at, request.hung_up_at, request.connection.closed_at) if at is not None]
            ended = min(ends, default=float("inf"))
            if ended > request.received_at + slack_s:
                moments += [(request.received_at + slack_s, 1), (ended, -1)]
    now = most = 0
    for at, change in sorted(moments):
        now += change
        if between[0] <= at <= between[1]:
            most = max(most, now)
    return most


def held_in_redis(url: str, prefix: str) -> dict[str, int]:
    """What the gate's store holds now: slots in use, tickets, concurrency and reserved money, where not 0."""
    fields = {":t": (b"n", b"k"), ":i:": (b"n",), ":m:": (b"r",)}
    held: dict[str, int] = {}
    with redis_client.Redis.from_url(url) as client:
        for found in client.scan_iter(match=f"{prefix}:*", count=1000):
            name = found.decode()
            kind = next((kind for kind in fields if f"}}{kind}" in name), None)
            for field in fields.get(kind or "", ()):
                number = int(cast("bytes | None", client.hget(name, field.decode())) or 0)
                if number:
                    held[f"{name} {field.decode()}"] = number
    return held


def worker_of(process: GatewayProcess, client: RawClient) -> int:
    """The pid of the worker that took a client's connection; 0 while none has."""
    port = client.local_port
    for each in process.tree():
        with contextlib.suppress(psutil.Error):
            if any(c.raddr[1:] == (port,) for c in each.net_connections("tcp")):
                return each.pid
    return 0
