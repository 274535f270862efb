"""Whom a request is from: as trusted proxies say, and as nobody else does."""

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.edge import scope_of
from tidegate.http.proxies import TrustedProxies, behind_trusted_proxies

TRUSTED = ["10.0.0.0/8", "2001:db8:aaaa::/48", "192.0.2.1"]


async def seen(
    *headers: tuple[str, str], peer: str | None = "10.0.0.5", trusted: list[str] | None = None
) -> tuple[Any, str]:
    """The client and the scheme that an application finds in its scope."""
    found: list[tuple[Any, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        found.append((scope["client"], scope["scheme"]))

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = scope_of(headers=encoded, client=None if peer is None else (peer, 40000))
    await behind_trusted_proxies(app, TRUSTED if trusted is None else trusted)(scope, nothing, nothing)
    return found[0]


async def client(*forwarded: str, peer: str | None = "10.0.0.5", trusted: list[str] | None = None) -> Any:
    headers = [("x-forwarded-for", value) for value in forwarded]
    return (await seen(*headers, peer=peer, trusted=trusted))[0]


@pytest.mark.parametrize(
    ("forwarded", "host", "port"),
    [
        ("203.0.113.7", "203.0.113.7", 0),
        (" 203.0.113.7 ", "203.0.113.7", 0),
        ("203.0.113.7:4711", "203.0.113.7", 4711),
        ("2001:db8::7", "2001:db8::7", 0),
        ("2001:0DB8:0::7", "2001:db8::7", 0),
        ("[2001:db8::7]", "2001:db8::7", 0),
        ("[2001:db8::7]:4711", "2001:db8::7", 4711),
        ("::ffff:203.0.113.7", "203.0.113.7", 0),
        ("::ffff:cb00:7107", "203.0.113.7", 0),
        ("203.0.113.7:", "203.0.113.7", 0),
        ("203.0.113.7:99999999", "203.0.113.7", 0),
        # Two proxies: the outer one's address was added by the inner.
        ("203.0.113.7, 10.0.0.9", "203.0.113.7", 0),
        ("203.0.113.7,, 10.0.0.9 ,", "203.0.113.7", 0),
        ("203.0.113.7, 2001:db8:aaaa::1, 192.0.2.1", "203.0.113.7", 0),
        ("203.0.113.7, ::ffff:10.0.0.9", "203.0.113.7", 0),
        # What a caller wrote itself stands further left.
        ("198.51.100.1, 203.0.113.7", "203.0.113.7", 0),
        ("10.0.0.1, 203.0.113.7, 10.0.0.9", "203.0.113.7", 0),
        ("junk, 203.0.113.7", "203.0.113.7", 0),
        # All are trusted: the first of them asked by itself.
        ("10.0.0.1, 10.0.0.2", "10.0.0.1", 0),
        # The proxy that wrote what is no address is the last who is known.
        ("junk, 10.0.0.9", "10.0.0.9", 0),
        ("203.0.113.7, unknown, 10.0.0.9", "10.0.0.9", 0),
    ],
)
async def test_the_client_is_the_last_who_is_no_trusted_proxy(forwarded: str, host: str, port: int) -> None:
    assert await client(forwarded) == (host, port)


@pytest.mark.parametrize(
    "forwarded",
    [
        "",
        " , ,",
        "unknown",
        "unix:",
        "_hidden",
        "localhost",
        "203.0.113.7.",
        "203.0.113.007",
        "203.0.113.7/32",
        "fe80::1%eth0",
        "[2001:db8::7",
        "[2001:db8::7]x",
        "203.0.113.7:1:2",
        '"203.0.113.7"',
        "2\xb203.0.113.7",
        "1" * 60000,
    ],
)
async def test_what_is_no_address_leaves_the_peer(forwarded: str) -> None:
    assert await client(forwarded) == ("10.0.0.5", 40000)


async def test_several_headers_are_one_list() -> None:
    assert await client("198.51.100.1", "203.0.113.7, 10.0.0.9") == ("203.0.113.7", 0)


@pytest.mark.parametrize("peer", ["203.0.113.9", "11.0.0.1", "2001:db8:aaab::1", "not-an-address", "x" * 5000, None])
async def test_who_is_not_listed_is_believed_nothing(peer: str | None) -> None:
    told = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https")]
    assert await seen(*told, peer=peer) == (None if peer is None else (peer, 40000), "http")


@pytest.mark.parametrize(
    "peer", ["10.255.255.255", "::ffff:10.0.0.5", "::ffff:a00:5", "2001:db8:aaaa:1::1", "192.0.2.1"]
)
async def test_who_is_listed_is_believed_however_the_address_is_written(peer: str) -> None:
    assert await client("203.0.113.7", peer=peer) == ("203.0.113.7", 0)


async def test_a_proxy_that_is_listed_inside_ipv6_is_the_ipv4_one() -> None:
    assert await client("203.0.113.7", trusted=["::ffff:10.0.0.0/104"]) == ("203.0.113.7", 0)


async def test_everyone_is_trusted_where_that_is_said() -> None:
    assert await client("203.0.113.7, 198.51.100.1", peer="198.51.100.9", trusted=["*"]) == ("203.0.113.7", 0)
    assert await client("203.0.113.7", peer=None, trusted=["*"]) == ("203.0.113.7", 0)


async def test_a_list_of_proxies_without_end_is_not_read_to_its_end() -> None:
    assert await client(", ".join(["203.0.113.7", *["10.0.0.1"] * 5000])) == ("10.0.0.1", 0)


@pytest.mark.parametrize(
    ("told", "scheme"),
    [
        (["https"], "https"),
        ([" HTTPS "], "https"),
        (["https", "http"], "http"),
        (["ftp"], "http"),
        (["https, http"], "http"),
        ([""], "http"),
    ],
)
async def test_the_scheme_is_what_the_proxy_said_last(told: list[str], scheme: str) -> None:
    assert (await seen(*(("x-forwarded-proto", value) for value in told)))[1] == scheme


async def test_other_headers_say_nothing() -> None:
    others = [
        ("forwarded", "for=198.51.100.1;proto=https;host=evil.example"),
        ("x-real-ip", "198.51.100.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-client-ip", "198.51.100.1"),
        ("cf-connecting-ip", "198.51.100.1"),
    ]
    assert await seen(*others) == (("10.0.0.5", 40000), "http")


def test_long_lists_are_not_kept_in_memory() -> None:
    trusted = TrustedProxies(TRUSTED)
    for n in range(100):
        trusted.client_of(b"junk" * 1000 + str(n).encode())
        trusted.trusts("x" * 1000 + str(n))
    assert trusted._remembered.cache_info().currsize == 0
    assert trusted._trusts.cache_info().currsize == 0
