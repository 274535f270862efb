"""How often one caller, an API key or a user, may call routes that are not the road: `/api`, `/auth`, `/v1/models`.

A call counts once it is known who calls, however it ends. The counter is in the caller's workspace's tag of the gate's
store: all workers share it, it slides, and while the store is away it is judged as the gate's limits are. The road is
not counted here: its callers meet the limits that are rows.
"""

import math
import uuid
from typing import Final

from tidegate.admission.desk import Desk
from tidegate.admission.headers import openai_headers, rate_headers
from tidegate.admission.store import BUCKETS, Asked, Check, Spent
from tidegate.auth.principal import Principal
from tidegate.errors import RateLimitExceeded
from tidegate.storage.redis import workspace_tag

WINDOW_S: Final = 60


class CallRate:
    """Counts calls for one worker. `per_minute` is the most that one caller makes in any 60 seconds.

    >>> headers = await CallRate(admission.desk, per_minute=600).count(principal)
    """

    def __init__(self, desk: Desk, per_minute: int) -> None:
        self._desk = desk
        self._per_minute = per_minute

    async def count(self, principal: Principal) -> dict[str, str]:
        """Counts one call. Returns what its answer tells of the rate; nothing where no store knows the whole.

        Raises `RateLimitExceeded`, and `Unavailable` where no store can judge and the settings deny then.
        """
        kind, subject = ("key", principal.key_id) if principal.key_id is not None else ("user", principal.user_id)
        label = f"{kind}-calls"
        tag, entry = workspace_tag(principal.workspace_id), uuid.uuid4().hex
        check = Check(f"{label}:{subject}", "sliding", "requests", self._per_minute, 1, width_s=WINDOW_S // BUCKETS)
        reply = await self._desk.take(tag, Asked(entry, (check,)))
        if reply.said != "taken":
            retry_s = math.ceil(reply.retry_ms / 1000)
            raise RateLimitExceeded(
                f"Too many calls: {self._per_minute} a minute for one {kind}. Try again in {retry_s} s.",
                headers={
                    "Retry-After": str(retry_s),
                    "retry-after-ms": str(reply.retry_ms),
                    **self._headers(label, 0, retry_s),
                },
            )
        # Counted, and not undone: nothing is held any longer.
        self._desk.release(tag, entry, Spent())
        if not reply.used:
            return {}
        return self._headers(label, self._per_minute - reply.used[0], WINDOW_S)

    def _headers(self, label: str, remaining: int, reset_s: int) -> dict[str, str]:
        told = rate_headers(label, self._per_minute, remaining, WINDOW_S, reset_s)
        return told | openai_headers("requests", self._per_minute, remaining, reset_s)
