"""What is written of API keys behind their callers' backs: when one was last used, and its hash under today's pepper.

Never on the road, and never needed: one task writes in the background, one short transaction after another, each a
conditional update. What cannot be written is forgotten, and the next look-up of the key notes it again.

- The last use is for people who wonder whether a key still is used. It is written at most once a minute, and only
  once a use was allowed: that a key was looked up says not yet that it may be used from there.
- A hash under an older pepper is replaced by one under the current pepper when its key is used, so that the old pepper
  can be dropped once every key in use has moved. Only the hash that was verified is replaced: a key that was rotated
  meanwhile is left alone.
"""

import asyncio
import uuid
from collections.abc import Hashable
from datetime import timedelta
from typing import Final

from sqlalchemy import Update, or_, update

from tidegate.auth.api_keys import StoredHash
from tidegate.auth.models import ApiKey, RetiringSecret
from tidegate.ledger.entry import utc_now
from tidegate.storage.database import Database
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

_EVERY: Final = timedelta(minutes=1)
_WAITING_AT_ONCE: Final = 1_000
_WRITE_WITHIN_S: Final = 5.0
_CLOSE_WITHIN_S: Final = 1.0


class KeyUpkeep:
    """Writes `last_used_at` and newer hashes. Both may be asked for at any rate: what waits already is not doubled.

    >>> upkeep = KeyUpkeep(database)
    >>> upkeep.looked_up(row)
    >>> upkeep.used(key_id)
    >>> await upkeep.aclose()  # before the database is
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[Hashable, Update] = {}
        self._unused: dict[uuid.UUID, None] = {}
        self._task: asyncio.Task[None] | None = None

    def looked_up(self, row: ApiKey) -> None:
        """What the database says of a key: its next use is noted, where the last is a minute ago."""
        # Plain: the driver's UUIDs are a subclass.
        key_id = uuid.UUID(int=row.id.int)
        self._unused.pop(key_id, None)
        if row.last_used_at is None or utc_now() - row.last_used_at >= _EVERY:
            if len(self._unused) >= _WAITING_AT_ONCE:
                del self._unused[next(iter(self._unused))]
            self._unused[key_id] = None

    def used(self, key_id: uuid.UUID) -> None:
        """This key is being used, and may be."""
        if not self._unused or key_id not in self._unused:
            return
        del self._unused[key_id]
        now = utc_now()
        not_lately = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - _EVERY)
        self._add((key_id, "used"), update(ApiKey).where(ApiKey.id == key_id, not_lately).values(last_used_at=now))

    def rehash(self, row: ApiKey | RetiringSecret, fresh: StoredHash) -> None:
        """The secret that this row has the hash of was verified, and would be hashed as `fresh` today."""
        table = type(row)
        same = (table.prefix == row.prefix, table.secret_hash == row.secret_hash)
        values = {
            "secret_hash": fresh.secret_hash,
            "hash_scheme": fresh.hash_scheme,
            "pepper_kid": fresh.pepper_kid,
        }
        self._add((row.prefix, "rehash"), update(table).where(*same).values(values))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written, nor waits to be."""
        return self._task is None

    async def aclose(self) -> None:
        """Begins no further write, and waits a little for the one under way: a transaction is better not cut."""
        self._waiting.clear()
        task = self._task
        if task is not None and (await asyncio.wait({task}, timeout=_CLOSE_WITHIN_S))[1]:
            task.cancel()
            await asyncio.wait({task}, timeout=_CLOSE_WITHIN_S)

    def _add(self, name: Hashable, statement: Update) -> None:
        if len(self._waiting) < _WAITING_AT_ONCE:
            self._waiting.setdefault(name, statement)
        if self._task is None:
            self._task = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                name = next(iter(self._waiting))
                async with asyncio.timeout(_WRITE_WITHIN_S), self._database.transaction() as session:
                    await session.execute(self._waiting.pop(name))
        # The edge of a background task: nobody waits for it, and what is not written harms nobody.
        except Exception as error:  # noqa: BLE001 - drivers raise more than SQLAlchemy's own tree
            self._waiting.clear()
            log.debug("the upkeep of API keys was not written", error=type(error).__name__)
        finally:
            self._task = None
