"""What the gate asks of its connections, to one server (`pipeline.py`) or to a cluster (`pipeline_cluster.py`)."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from tidegate.storage.pipeline_wire import Argument, Taker


class Pipe(Protocol):
    """`PipelinedRedis` or `PipelinedCluster`, which say what each of these does."""

    on_connected: list[Callable[[], None]]
    on_lost: list[Callable[[], None]]

    @property
    def is_connected(self) -> bool: ...

    @property
    def run_id(self) -> str | None: ...

    @property
    def layout(self) -> str: ...

    def send(self, *args: Argument) -> asyncio.Future[Any]: ...

    def hand_script(self, taker: Taker, name: str, key: str, op: str, payload: bytes) -> None: ...

    async def ask_each(self, *args: Argument) -> list[Any]: ...

    def runs(self) -> dict[str, str]: ...
