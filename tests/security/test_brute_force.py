"""Guessing passwords and tokens over real connections: from one address, from many, and behind forged headers.

What is counted is hashing, by a counter: a try that is refused costs none, and one with an address that nobody has
costs what one with somebody's does.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.security.serving import Served, served
from tests.support.credentials import PASSWORD
from tidegate.accounts.tries import SENSITIVE, SensitiveName
from tidegate.settings.groups import HttpSettings

ADA: Final = "ada@example.com"
LOGIN: Final = SENSITIVE["login"]
# All that a proxy or a client may say of where a request is from, and that no server asked.
FORGED: Final = (
    "X-Forwarded-For",
    "Forwarded",
    "X-Real-IP",
    "X-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Cluster-Client-IP",
    "X-Originating-IP",
    "Client-IP",
    "Via",
)
# Routes that anybody may try a credential on, by the name of their limit.
OPEN: Final[dict[SensitiveName, tuple[str, dict[str, Any]]]] = {
    "forgot": ("/auth/password/forgot", {"email": "{n}@example.com"}),
    "reset": ("/auth/password/reset", {"token": "{n}", "password": "quite another horse stable"}),
    "accept": ("/auth/invitations/accept", {"token": "{n}", "password": "quite another horse stable"}),
    "confirm-email": ("/auth/email/confirm", {"token": "{n}"}),
    "refresh": ("/auth/refresh", {"refresh_token": "{n}"}),
    "logout": ("/auth/logout", {"refresh_token": "{n}"}),
}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path) as gateway:
        yield gateway


def addresses() -> Iterator[str]:
    return (f"127.{n // 250 + 1}.{n % 250}.7" for n in itertools.count())


def forged(n: int) -> dict[str, str]:
    said = f"203.0.{n // 250}.{n % 250 + 1}"
    return {name: f"for={said}" if name == "Forwarded" else said for name in FORGED}


async def test_one_account_is_tried_ten_times_however_many_addresses_try(gateway: Served) -> None:
    before = gateway.hasher.computations
    answers = await asyncio.gather(
        *(gateway.log_in(ADA, source=source) for source in itertools.islice(addresses(), 40))
    )
    assert Counter(answer.status_code for answer in answers) == {401: LOGIN.by_account, 429: 40 - LOGIN.by_account}
    assert gateway.hasher.computations - before == LOGIN.by_account
    # Written otherwise it is the same account, and no other is held up.
    for written in ("ADA@example.com", " Ada@Example.COM "):
        assert (await gateway.log_in(written.strip(), source="127.9.9.9")).status_code == 429
    assert (await gateway.log_in("bob@example.com", PASSWORD, source="127.9.9.9")).status_code == 200


async def test_the_right_password_is_refused_as_well_while_others_guess(gateway: Served) -> None:
    for source in itertools.islice(addresses(), LOGIN.by_account):
        await gateway.log_in(ADA, source=source)
    before = gateway.hasher.computations
    answer = await gateway.log_in(ADA, PASSWORD, source="127.9.9.9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) > 0
    assert gateway.hasher.computations == before


async def test_one_address_tries_thirty_accounts(gateway: Served) -> None:
    tried = 0
    before = gateway.hasher.computations
    for n in range(45):
        answer = await gateway.log_in(f"guess-{n}@example.com", source="127.0.0.9", **forged(n))
        tried += answer.status_code == 401
    assert tried == LOGIN.by_address
    assert gateway.hasher.computations - before == LOGIN.by_address
    assert (await gateway.log_in(ADA, PASSWORD, source="127.0.0.9", **forged(99))).status_code == 429
    assert (await gateway.log_in(ADA, PASSWORD, source="127.0.0.10")).status_code == 200


async def test_behind_a_trusted_proxy_only_what_that_proxy_wrote_is_read(tmp_path: Path) -> None:
    async with served(tmp_path, http=HttpSettings(trusted_proxies=("127.0.0.1",))) as gateway:

        async def tries(n: int, written: str, source: str = "127.0.0.1") -> int:
            headers = {**forged(n), "X-Forwarded-For": written}
            return (await gateway.log_in(f"{n}@example.com", source=source, **headers)).status_code

        # The proxy appends who called it; before that stands what the caller made up.
        ours = [await tries(n, f"203.0.{n // 250}.{n % 250}, 198.51.100.7") for n in range(40)]
        assert Counter(ours) == {401: LOGIN.by_address, 429: 40 - LOGIN.by_address}
        assert await tries(41, "198.51.100.8") == 401
        # Who is no proxy is believed nothing.
        others = [await tries(100 + n, f"203.0.113.{n}", "127.0.0.5") for n in range(40)]
        assert Counter(others) == {401: LOGIN.by_address, 429: 40 - LOGIN.by_address}


@pytest.mark.parametrize("name", sorted(OPEN))
async def test_every_route_that_takes_a_credential_has_an_end_of_tries(gateway: Served, name: SensitiveName) -> None:
    path, form = OPEN[name]
    most = SENSITIVE[name].by_address
    before = gateway.hasher.computations

    async def a_try(n: int) -> int:
        body = {key: value.replace("{n}", str(n) if "@" in value else f"tgm_{n:043d}") for key, value in form.items()}
        return (await gateway.post(path, body, source="127.0.0.9", **forged(n))).status_code

    answers: list[int] = []
    for first in range(0, most + 5, 20):
        answers += await asyncio.gather(*(a_try(n) for n in range(first, first + 20)))
    refused = [status for status in answers if status == 429]
    assert len(answers) - len(refused) == most
    assert gateway.hasher.computations == before


def test_these_are_all_the_routes_that_anybody_may_try_credentials_on() -> None:
    of_users = {"change-password", "change-email", "invite", "second-factor", "prove-again"}
    # Single sign-on asks the provider, and takes nothing that could be guessed here.
    elsewhere = {name for name in SENSITIVE if name.startswith("sso")}
    assert {"login", *OPEN} == SENSITIVE.keys() - of_users - elsewhere


@pytest.mark.parametrize("path", ["/auth/login", "/auth/page/login"])
async def test_who_has_an_account_is_told_by_no_answer_and_no_work(gateway: Served, path: str) -> None:
    own_page = {"X-Tidegate-CSRF": "1"}
    kinds = {"somebody": ADA, "nobody": "nobody@example.com", "no password": "sso@example.com"}
    kinds |= {"disabled": "gone@example.com"}
    for n, password in enumerate(
        ("wrong", "x" * 1024, "Wro\u0308ng \u00c5ngstro\u0308m", "\ud55c\uae00 \u1112\u1161\u11ab")
    ):
        told: dict[str, tuple[Any, ...]] = {}
        for kind, email in kinds.items():
            before = gateway.hasher.computations
            source = f"127.0.{n}.{len(told) + 50}"
            answer = await gateway.post(path, {"email": email, "password": password}, source=source, **own_page)
            body = answer.json()
            body.pop("request_id")
            varying = ("date", "x-request-id")
            headers = sorted(item for item in answer.headers.items() if item[0] not in varying)
            told[kind] = (answer.status_code, body, headers, gateway.hasher.computations - before)
        assert told["somebody"][0] == 401
        assert told["somebody"][3] >= 1
        assert [kind for kind in kinds if told[kind] != told["somebody"]] == [], f"{password!r}: {told}"


async def test_asking_for_a_new_password_tells_nothing_and_hashes_nothing(gateway: Served) -> None:
    before = gateway.hasher.computations
    answers = [
        await gateway.post("/auth/password/forgot", {"email": email}, source="127.0.0.9")
        for email in (ADA, "nobody@example.com", "sso@example.com", "gone@example.com")
    ]
    assert {(answer.status_code, answer.text) for answer in answers} == {(202, "{}")}
    assert gateway.hasher.computations == before
