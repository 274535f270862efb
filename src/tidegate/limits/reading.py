"""Reads a workspace's limits from the database, with those that apply to every workspace."""

import asyncio
import uuid
from typing import Final

from sqlalchemy import select

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.limits.matching import Remembered, WorkspaceLimits
from tidegate.limits.models import LimitRow
from tidegate.limits.service import SHARED_SCOPES
from tidegate.limits.values import Limit
from tidegate.limits.windows import zone_exists
from tidegate.storage.database import Database
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

_COLUMNS: Final = [LimitRow.__table__.c[name] for name in Limit.__struct_fields__]
# The loop is given back after so many rows: some 2 ms.
_AT_ONCE: Final = 500


class LimitReader:
    """Reads limits. Awaiting it takes one short query; it raises what the driver raises.

    >>> limits = await LimitReader(database)(workspace_id)
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered = Remembered()

    async def __call__(self, workspace_id: uuid.UUID) -> WorkspaceLimits:
        own = (LimitRow.workspace_id == workspace_id) & LimitRow.scope.not_in(SHARED_SCOPES)
        shared = (LimitRow.workspace_id == DEFAULT_WORKSPACE_ID) & LimitRow.scope.in_(SHARED_SCOPES)
        async with self._database.session() as session:
            rows = (await session.execute(select(*_COLUMNS).where(own | shared).order_by(LimitRow.id))).all()
        limits: list[Limit] = []
        for n in range(0, len(rows), _AT_ONCE):
            if n:
                await asyncio.sleep(0)
            limits += [_limit(*row) for row in rows[n : n + _AT_ONCE]]
        return WorkspaceLimits(limits, self._remembered)


def _limit(limit_id: uuid.UUID, workspace_id: uuid.UUID, *rest: object) -> Limit:
    # The driver's UUIDs are a subclass, which orjson refuses; limits end up in log lines.
    values = (uuid.UUID(int=limit_id.int), uuid.UUID(int=workspace_id.int), *rest)
    fields = dict(zip(Limit.__struct_fields__, values, strict=True))
    zone = fields["zone"]
    if isinstance(zone, str) and not zone_exists(zone):
        # The row was written elsewhere, where the zone is known: in UTC it still holds.
        log.error("a limit's time zone is not known here: it is counted in UTC", limit=str(limit_id), zone=zone)
        fields["zone"] = None
    return Limit(**fields)  # type: ignore[arg-type]
