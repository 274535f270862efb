"""A steady load of short requests, for what must not be noticed: on connections that are kept, and on new ones.

    async with SteadyLoad(gateway.base_url, ask) as load:
        gateway.signal(signal.SIGUSR2)
        await eventually(…)
    assert load.faults == [] and load.answered > 0

A kept connection is given up where an answer says `Connection: close`, as every client does, and never tried again:
one that ends under a request is a request lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from tests.support.client import ConnectionEnded, RawClient

# Between two requests of one connection: the load is steady, not all that the machine bears.
_PACE_S = 0.01


class SteadyLoad:
    """`ask` sends one request; every answer other than a 200 is a fault, and so is a connection that ends early."""

    def __init__(
        self, base_url: str, ask: Callable[[RawClient], Awaitable[None]], *, kept: int = 3, fresh: int = 2
    ) -> None:
        self._base_url = base_url
        self._ask = ask
        self._kept = kept
        self._fresh = fresh
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False
        self.answered = 0
        self.told_to_close = 0
        self.bodies: list[bytes] = []
        self.faults: list[str] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run(is_kept=n < self._kept)) for n in range(self._kept + self._fresh)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)

    async def _run(self, *, is_kept: bool) -> None:
        while not self._is_over:
            asked = 0
            try:
                async with RawClient(self._base_url) as client:
                    while True:
                        await self._ask(client)
                        asked += 1
                        if not await self._is_kept(client) or not is_kept or self._is_over:
                            break
                        await asyncio.sleep(_PACE_S)
            except (ConnectionEnded, OSError) as error:
                self.faults.append(f"request {asked} of a {'kept' if is_kept else 'new'} connection: {error!r}")

    async def _is_kept(self, client: RawClient) -> bool:
        head = await client.head()
        body = await client.body()
        self.answered += 1
        self.bodies.append(body)
        if head.status != 200:
            self.faults.append(f"{head.status}: {body[:300]!r}")
        closes = head.headers.get("connection", "") == "close"
        self.told_to_close += closes
        return not closes
