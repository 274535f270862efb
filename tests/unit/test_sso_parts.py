"""The parts of single sign-on that need no gateway: paths, what is kept of the provider, and its deadline."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress

import httpx2
import pytest

from tests.support.waiting import eventually
from tidegate.accounts.single_sign_on.calls import Calls, Kept
from tidegate.accounts.single_sign_on.landing import landing_page
from tidegate.accounts.single_sign_on.pending import PendingLogIn, local_path
from tidegate.accounts.single_sign_on.seals import Seals
from tidegate.auth.keyring import Keyring
from tidegate.errors import Unavailable, UpstreamError

SECRET = b"a secret of the deployment, of 32 bytes"


@pytest.mark.parametrize(
    "path", ["/", "/usage", "/a/b?c=d&e=f#g", "/a%2F%2Fevil.example", "/@evil.example", "/a:b", "/~ada/.well-known"]
)
def test_a_path_of_this_gateway_stands(path: str) -> None:
    assert local_path(path) == path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "usage",
        "https://evil.example",
        "HTTPS:evil.example",
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "\t//evil.example",
        " //evil.example",
        "/.//evil.example",
        "/..//evil.example",
        "/a//evil.example",
        "/?next=//evil.example",
        "/a\r\nSet-Cookie: x=y",
        "/a\n",
        "/a\x00",
        '/"><script>',
        "/a b",
        "/\u2028",
        "/\uff0fevil.example",
        "/\u00e9",
        "/\udc80",
        "/" + "a" * 1024,
    ],
)
def test_whatever_else_a_url_may_be_is_the_front_page(url: str) -> None:
    assert local_path(url) == "/"


def test_a_path_is_text_in_the_page_that_leads_to_it() -> None:
    page = landing_page("/a?b=c&d='e'")
    assert page.count("/a?b=c&amp;d=&#x27;e&#x27;") == 2
    assert "'" not in page


def test_a_log_in_that_one_key_sealed_opens_while_it_is_listed() -> None:
    pending = PendingLogIn.begin("/", time.time())
    sealed = Seals(Keyring({"1": SECRET}), bound_to="x").seal(pending)
    other = b"another secret of the deployment, longer"
    assert Seals(Keyring({"2": other, "1": SECRET}), bound_to="x").open(sealed) == pending
    assert Seals(Keyring({"2": other}), bound_to="x").open(sealed) is None
    assert Seals(Keyring({"2": SECRET}), bound_to="x").open(sealed) is None
    assert Seals(Keyring({"1": SECRET}), bound_to="y").open(sealed) is None
    for secret in (pending.state, pending.nonce, pending.code_verifier):
        assert secret not in repr(pending)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fetches:
    """Fetches that end when they are let."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> int:
        self.count += 1
        await self.may_end.wait()
        if self.fails:
            raise Unavailable("not now")
        return self.count


async def test_a_document_is_kept_and_fetched_again_after_its_time() -> None:
    fetches, clock = Fetches(), Clock()
    kept = Kept(fetches, max_age_s=600, clock=clock)
    assert [await kept.get(), await kept.get()] == [1, 1]
    clock.now += 600
    assert await kept.get() == 2


async def test_a_document_is_fetched_anew_once_a_minute_however_often_it_is_asked_for() -> None:
    fetches, clock = Fetches(), Clock()
    kept = Kept(fetches, max_age_s=600, clock=clock)
    await kept.get()
    assert [await kept.anew() for _ in range(5)] == [2] * 5
    clock.now += 59.9
    assert await kept.anew() == 2
    clock.now += 0.1
    assert await kept.anew() == 3


async def test_a_fetch_that_fails_counts_as_one_too() -> None:
    fetches, clock = Fetches(), Clock()
    kept = Kept(fetches, max_age_s=600, clock=clock)
    await kept.get()
    fetches.fails = True
    with pytest.raises(Unavailable):
        await kept.anew()
    # What is kept is still good.
    assert await kept.anew() == 1
    assert fetches.count == 2


async def test_all_who_wait_share_one_fetch_and_one_who_leaves_ends_it_for_nobody() -> None:
    fetches = Fetches()
    fetches.may_end.clear()
    kept = Kept(fetches, max_age_s=600)
    waiting = [asyncio.create_task(kept.get()) for _ in range(4)]
    await eventually(lambda: fetches.count == 1)
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    fetches.may_end.set()
    assert await asyncio.gather(*waiting[1:]) == [1, 1, 1]


async def test_closing_ends_a_fetch_that_runs() -> None:
    fetches = Fetches()
    fetches.may_end.clear()
    kept = Kept(fetches, max_age_s=600)
    waiting = asyncio.create_task(kept.get())
    await eventually(lambda: fetches.count == 1)
    await kept.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_closing_waits_for_no_fetch_that_does_not_end() -> None:
    may_end = asyncio.Event()
    is_waiting = asyncio.Event()

    async def deaf() -> int:
        while not may_end.is_set():
            is_waiting.set()
            with suppress(asyncio.CancelledError):
                await may_end.wait()
        return 1

    kept = Kept(deaf, max_age_s=600)
    asked = asyncio.create_task(kept.get())
    await is_waiting.wait()
    await asyncio.wait_for(kept.aclose(within_s=0.05), 10)
    may_end.set()
    assert await asked == 1


class Drip(httpx2.AsyncByteStream):
    """A byte now and then, without end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.005)


async def _stalled(request: httpx2.Request) -> httpx2.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def _dripping(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, stream=Drip())


async def _unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("refused: http://10.0.0.1/secret")


async def _broken(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ReadError("")


@pytest.mark.parametrize(
    ("answering", "said"),
    [(_stalled, "0.05 s"), (_dripping, "0.05 s"), (_unreachable, "reached"), (_broken, "reached")],
)
async def test_a_provider_that_does_not_answer_in_time_is_unavailable(
    answering: Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]], said: str
) -> None:
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answering)) as client:
        with pytest.raises(Unavailable, match=said) as told:
            await Calls(client, deadline_s=0.05).send("GET", "https://idp.example.com/", what="its keys")
    assert "TIDEGATE_SINGLE_SIGN_ON__ISSUER" in told.value.message
    assert "10.0.0.1" not in told.value.message


async def test_no_redirect_is_followed_whatever_the_client_does_else() -> None:
    seen = []

    async def leading(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        return httpx2.Response(308, headers={"location": "https://evil.example/"}, stream=httpx2.ByteStream(b""))

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(leading), follow_redirects=True) as client:
        with pytest.raises(UpstreamError, match="led elsewhere"):
            await Calls(client).send("POST", "https://idp.example.com/token", what="a token", content=b"code=secret")
    assert seen == ["https://idp.example.com/token"]
