"""What dead workers' entries came to, told to the store: their reservations end with what the ledger says.

Whoever recovers a dead journal calls this, once its entries are in the database. An entry that the store still holds
ends there, whoever held it. One that it knows nothing of, and that ended lately, is counted once: the store remembers
for ten minutes whom it has counted. What ended before that was told when it ended, or is in the ledger's sum.
"""

import time
from collections.abc import Callable, Sequence

from tidegate.admission.checks import Reserve, check_of
from tidegate.admission.counters import COUNTED_MS
from tidegate.admission.desk import Desk
from tidegate.admission.gate import spent_of
from tidegate.admission.store import UNDO, Check
from tidegate.auth.principal import Principal
from tidegate.errors import Unavailable
from tidegate.ledger.entry import Attribution, Entry
from tidegate.limits.book import LimitBook
from tidegate.limits.values import Matched
from tidegate.storage.redis import DEPLOYMENT_TAG, upstream_tag, workspace_tag
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)


class RecoveredEntries:
    """Tells the store of recovered entries. It never raises: what it cannot tell, the store expires."""

    def __init__(
        self,
        desk: Desk,
        book: LimitBook,
        *,
        groups_of: Callable[[str], tuple[str, ...]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._desk = desk
        self._book = book
        self._groups_of = groups_of
        self._clock = clock

    async def __call__(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            try:
                limits = await self._book.of(entry.workspace_id)
            except Unavailable:
                log.warning("recovered_entry_not_told", entry_id=str(entry.entry_id))
                continue
            principal = Principal(workspace_id=entry.workspace_id, key_id=entry.key_id, user_id=entry.user_id)
            groups = self._groups_of(entry.model)
            own = limits.caller(principal, Attribution(), entry.model, groups)
            deployment = limits.deployment(entry.model, groups)
            spent = spent_of(entry) if entry.attempts else UNDO
            name = entry.entry_id.hex
            if self._clock() - entry.ended_at.timestamp() > COUNTED_MS / 1000:
                own = deployment = ()
            self._desk.recover(workspace_tag(entry.workspace_id), name, spent, _checks(own, entry))
            self._desk.recover(DEPLOYMENT_TAG, name, spent, _checks(deployment, entry))
            for attempt in entry.attempts:
                self._desk.recover(upstream_tag(attempt.upstream), f"{name}.{attempt.n}", UNDO, ())


def _checks(limits: tuple[Matched, ...], entry: Entry) -> tuple[Check, ...]:
    started_s = entry.started_at.timestamp()
    return tuple(check_of(one, Reserve(), started_s) for one in limits)
