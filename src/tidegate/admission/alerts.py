"""What is said when a limit's level is passed: a log line, a count, and a signed message to a webhook.

Each level (50, 80, 100 % of a budget; 100 % of a limit that only watches) is told once a window, by the worker whose
step passed it. The road does not wait for it: messages go by a bounded queue, and what cannot be delivered in three
tries is logged and dropped. The client that they are posted by says which addresses are called (`upstream.network`); a
redirect is a refusal, and of an answer nothing but its status is read.
"""

import asyncio
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import orjson

from tidegate.admission.store import Alert
from tidegate.limits.values import Limit, written_amount
from tidegate.settings.groups import AlertsSettings
from tidegate.telemetry.logging import get_logger

SIGNATURE_HEADER = "X-Tidegate-Signature"
_MOST_WAITING = 1_000
_PAUSES_S = (0.0, 1.0, 5.0)
_POST_WITHIN_S = 5.0
_FLUSH_WITHIN_S = 1.0

log = get_logger(__name__)


def signature(secret: str, body: bytes, at: int) -> str:
    """What the header holds: the time (Unix seconds), and the HMAC-SHA256 of `<time>.<body>` in hex.

    >>> signature("s" * 32, b"{}", 1700000000)[:15]
    't=1700000000,v1'
    """
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Alerts:
    """Tells of alerts. `told` counts them by level.

    >>> async with Alerts.running(settings.alerts, client, limit_of) as alerts:
    ...     alerts.tell("w:…", reply.alerts)
    """

    def __init__(
        self,
        settings: AlertsSettings,
        client: httpx2.AsyncClient,
        limit_of: Callable[[str], Limit | None],
        *,
        pauses_s: Sequence[float] = _PAUSES_S,
    ) -> None:
        self.told: Counter[int] = Counter()
        self.dropped = 0
        self._settings = settings
        self._client = client
        self._limit_of = limit_of
        self._pauses_s = pauses_s
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_MOST_WAITING)

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        settings: AlertsSettings,
        client: httpx2.AsyncClient,
        limit_of: Callable[[str], Limit | None],
        *,
        pauses_s: Sequence[float] = _PAUSES_S,
    ) -> AsyncIterator["Alerts"]:
        """`pauses_s` stand before each try, which are as many."""
        alerts = cls(settings, client, limit_of, pauses_s=pauses_s)
        task = asyncio.create_task(alerts._deliver()) if settings.webhook_url is not None else None
        try:
            yield alerts
        finally:
            if task is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_FLUSH_WITHIN_S):
                    await alerts._queue.join()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            while not alerts._queue.empty():
                alerts._drop(alerts._queue.get_nowait(), "shutdown")

    def tell(self, tag: str, alerts: tuple[Alert, ...]) -> None:
        for alert in alerts:
            self.told[alert.level] += 1
            message = self._message(tag, alert)
            log.warning("limit_alert", **message)
            if self._settings.webhook_url is None:
                continue
            try:
                self._queue.put_nowait({"type": "limit.alert", "at": int(time.time()), **message})
            except asyncio.QueueFull:
                self.dropped += 1

    def _message(self, tag: str, alert: Alert) -> dict[str, Any]:
        limit = self._limit_of(alert.counter)
        _, _, subject = alert.counter.partition(":")
        message: dict[str, Any] = {"level": alert.level, "tag": tag, "counter": alert.counter}
        if limit is not None:
            message |= {
                "limit_id": str(limit.id),
                "label": limit.label,
                "workspace_id": str(limit.workspace_id),
                "subject": subject or limit.subject,
                "meter": limit.meter,
                "window": limit.window,
                "used": written_amount(limit.meter, alert.used),
                "amount": written_amount(limit.meter, alert.amount),
            }
        return message

    async def _deliver(self) -> None:
        while True:
            message = await self._queue.get()
            # What it is told as where the process ends meanwhile.
            reason = "shutdown"
            try:
                reason = await self._delivered(orjson.dumps(message))
            finally:
                if reason:
                    self._drop(message, reason)
            self._queue.task_done()

    async def _delivered(self, body: bytes) -> str:
        """Posts one message, some times. Returns why it was not taken, empty where it was."""
        reason = ""
        for pause_s in self._pauses_s:
            await asyncio.sleep(pause_s)
            reason = await self._post(body)
            if not reason:
                break
        return reason

    def _drop(self, message: dict[str, Any], reason: str) -> None:
        self.dropped += 1
        log.warning("alert_not_delivered", label=message.get("label"), level=message["level"], reason=reason)

    async def _post(self, body: bytes) -> str:
        """Posts one message. Returns why it was not taken, empty where it was."""
        settings = self._settings
        assert settings.webhook_url is not None
        assert settings.webhook_secret is not None
        headers = {
            "Content-Type": "application/json",
            SIGNATURE_HEADER: signature(settings.webhook_secret.get_secret_value(), body, int(time.time())),
        }
        try:
            async with asyncio.timeout(_POST_WITHIN_S):
                url = settings.webhook_url.get_secret_value()
                sending = self._client.stream("POST", url, content=body, headers=headers, follow_redirects=False)
                async with sending as answer:
                    status = answer.status_code
        # The edge of a background task: whatever it is, the next message must go on.
        except Exception as error:  # noqa: BLE001 - a client raises more than its own tree
            return type(error).__name__
        return "" if status < 300 else f"status {status}"
