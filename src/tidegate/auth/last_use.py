"""When a key was last used, for people who wonder whether it still is. Never on the road, and never exact.

A key's time is written at most once a minute, by one task in the background, one short transaction after another.
What cannot be written is forgotten: the next use notes it again.
"""

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import or_, update

from tidegate.auth.models import ApiKey
from tidegate.ledger.entry import utc_now
from tidegate.storage.database import Database
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

_EVERY: Final = timedelta(minutes=1)
_WAITING_AT_ONCE: Final = 1_000
_WRITE_WITHIN_S: Final = 5.0


class LastUse:
    """Writes `last_used_at` of API keys behind their callers' backs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: set[uuid.UUID] = set()
        self._task: asyncio.Task[None] | None = None

    def note(self, key_id: uuid.UUID, last_used_at: datetime | None) -> None:
        """This key is being used; `last_used_at` is what its row says."""
        if last_used_at is not None and utc_now() - last_used_at < _EVERY:
            return
        if len(self._waiting) < _WAITING_AT_ONCE:
            self._waiting.add(key_id)
        if self._task is None:
            self._task = asyncio.create_task(self._write_all())

    async def aclose(self) -> None:
        """Writes nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                async with asyncio.timeout(_WRITE_WITHIN_S):
                    await self._write(self._waiting.pop())
        # The edge of a background task: nobody waits for it, and a time that is not written harms nobody.
        except Exception as error:  # noqa: BLE001 - drivers raise more than SQLAlchemy's own tree
            self._waiting.clear()
            log.debug("the last use of API keys was not written", error=type(error).__name__)
        finally:
            self._task = None

    async def _write(self, key_id: uuid.UUID) -> None:
        now = utc_now()
        not_lately = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - _EVERY)
        async with self._database.transaction() as session:
            await session.execute(update(ApiKey).where(ApiKey.id == key_id, not_lately).values(last_used_at=now))
