"""What is said when a budget's level is passed: once in the log, and to a webhook that may be down."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from tests.support.waiting import eventually
from tests.unit.limits import a_limit
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.admission.alerts import SIGNATURE_HEADER, Alerts, signature
from tidegate.admission.alone import LocalStore
from tidegate.admission.store import Alert, Asked, Check, Seeding, Spent
from tidegate.limits.values import Limit
from tidegate.settings.groups import AlertsSettings

SECRET = "webhook-secret-0123456789-abcdefghijkl"
A_BUDGET = a_limit(scope="workspace", meter="cost", window="month", amount=10 * 10**9)
ALERT = Alert("budget", 80, 8 * 10**9, 10 * 10**9)

Answer = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [line for line in lines if line["event"] == event]


@asynccontextmanager
async def alerting(answer: Answer, *, has_webhook: bool = True) -> AsyncIterator[Alerts]:
    webhook = {"webhook_url": SecretStr("http://hooks.test/tidegate"), "webhook_secret": SecretStr(SECRET)}
    settings = AlertsSettings(**webhook) if has_webhook else AlertsSettings()
    limits: dict[str, Limit] = {"budget": A_BUDGET}
    async with (
        httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client,
        Alerts.running(settings, client, limits.get, pauses_s=(0, 0, 0)) as alerts,
    ):
        yield alerts


async def never(_: httpx2.Request) -> httpx2.Response:
    raise AssertionError("nobody is to be told")


async def test_a_budget_is_told_of_at_50_80_and_100_percent_once_each(caplog: pytest.LogCaptureFixture) -> None:
    async with alerting(never, has_webhook=False) as alerts:
        store = LocalStore(told=lambda *_: None, alerted=alerts.tell)
        await store.seed("w:1", Seeding("budget", 0, 0, 1000, 0))
        for n in range(12):
            check = Check("budget", "calendar", "cost", 1000, 100, refuses=False, alerts=True)
            await store.take("w:1", "w1", Asked(f"e{n}", (check,)))
            store.release("w:1", "w1", f"e{n}", Spent(cost=100))
    told = logged(caplog, "limit_alert")
    assert [line["level"] for line in told] == [50, 80, 100]
    assert dict(alerts.told) == {50: 1, 80: 1, 100: 1}
    assert (told[0]["label"], told[0]["meter"], told[0]["window"]) == ("workspace-cost-month", "cost", "month")


async def test_the_webhook_is_told_with_a_signature_that_can_be_checked() -> None:
    heard: list[httpx2.Request] = []

    async def hears(request: httpx2.Request) -> httpx2.Response:
        heard.append(request)
        return httpx2.Response(204)

    async with alerting(hears) as alerts:
        alerts.tell("w:1", (ALERT,))
        await eventually(lambda: heard)
    (request,) = heard
    at, given = request.headers[SIGNATURE_HEADER].removeprefix("t=").split(",v1=")
    expected = hmac.new(SECRET.encode(), at.encode() + b"." + request.content, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(given, expected)
    assert request.headers["content-type"] == "application/json"
    message = json.loads(request.content)
    assert message | {"at": 0} == {
        "type": "limit.alert",
        "at": 0,
        "level": 80,
        "tag": "w:1",
        "counter": "budget",
        "limit_id": str(A_BUDGET.id),
        "label": "workspace-cost-month",
        "workspace_id": str(A_BUDGET.workspace_id),
        "subject": None,
        "meter": "cost",
        "window": "month",
        "used": "8",
        "amount": "10",
    }


async def test_a_webhook_that_fails_is_asked_again() -> None:
    answers: list[httpx2.Response | Exception] = [
        httpx2.ConnectError("refused"),
        httpx2.Response(503),
        httpx2.Response(200),
        httpx2.Response(200),
    ]
    bodies: list[bytes] = []

    async def stumbles(request: httpx2.Request) -> httpx2.Response:
        bodies.append(request.content)
        answer = answers[len(bodies) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with alerting(stumbles) as alerts:
        alerts.tell("w:1", (ALERT, ALERT))
        await eventually(lambda: len(bodies) == 4)
        assert alerts.dropped == 0
    assert len(set(bodies[:3])) == 1


@pytest.mark.parametrize("fault", [httpx2.Response(500), httpx2.InvalidURL("no"), OSError("no"), UnicodeError("no")])
async def test_what_cannot_be_delivered_in_three_tries_is_dropped_and_the_next_is_tried(
    fault: httpx2.Response | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    async def fails(_: httpx2.Request) -> httpx2.Response:
        nonlocal asked
        asked += 1
        if asked > 3:
            return httpx2.Response(200)
        if isinstance(fault, Exception):
            raise fault
        return fault

    async with alerting(fails) as alerts:
        alerts.tell("w:1", (ALERT, ALERT))
        await eventually(lambda: asked == 4)
        assert alerts.dropped == 1
    assert [line["label"] for line in logged(caplog, "alert_not_delivered")] == ["workspace-cost-month"]


async def test_a_webhook_that_hangs_holds_up_nobody_and_no_memory() -> None:
    hanging = asyncio.Event()

    async def hangs(_: httpx2.Request) -> httpx2.Response:
        hanging.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with alerting(hangs) as alerts:
        alerts.tell("w:1", (ALERT,))
        await hanging.wait()
        alerts.tell("w:1", (ALERT,) * 1_500)
        assert alerts.dropped == 500
        assert alerts.told[80] == 1_501


async def test_what_is_left_at_the_end_is_delivered() -> None:
    heard: list[int] = []

    async def hears(request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(0)
        heard.append(json.loads(request.content)["level"])
        return httpx2.Response(204)

    async with alerting(hears) as alerts:
        alerts.tell("w:1", (ALERT,) * 3)
        assert heard == []
    assert heard == [80] * 3


@in_virtual_time
async def test_what_cannot_be_delivered_within_a_second_of_the_end_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hanging = asyncio.Event()

    async def hangs(_: httpx2.Request) -> httpx2.Response:
        hanging.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with alerting(hangs) as alerts:
        alerts.tell("w:1", (ALERT,))
        await hanging.wait()
        alerts.tell("w:1", (ALERT,) * 2)
        ends_at = now()
    assert now() - ends_at == pytest.approx(1.0)
    lines = [line for line in logged(caplog, "alert_not_delivered") if line["reason"] == "shutdown"]
    assert [(line["label"], line["level"]) for line in lines][:2] == [("workspace-cost-month", 80)] * 2


def test_a_signature_is_of_its_time_and_its_body() -> None:
    signed = signature(SECRET, b"{}", 1_700_000_000)
    assert signed.startswith("t=1700000000,v1=")
    assert len({signed, signature(SECRET, b"{}", 1), signature(SECRET, b"{ }", 1_700_000_000)}) == 3
