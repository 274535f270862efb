"""Bodies that are made to break or to exhaust who reads them: every route of the real gateway that takes one."""

import asyncio
import gzip
import itertools
from typing import Final

import orjson

from tests.integration.test_http_json import ODD, UNREADABLE, WRAPPED
from tests.security.attacked import Attacked
from tests.security.routes import Route, routes
from tests.support.client import RawClient
from tests.support.waiting import eventually

MIB: Final = 1 << 20
# What one request may add to a process that serves it, and keep: a body of 20 MiB that is read, parsed and let go.
MOST_KEPT: Final = 150 * MIB
BOMBS: Final = {
    "arrays in arrays": b"[" * 32_000 + b"]" * 32_000,
    "objects in objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "arrays in a field of ours": WRAPPED % (b"[" * 20_000 + b"]" * 20_000),
    "a number of many digits": WRAPPED % (b"9" * 60_000),
    "a number below zero of many digits": WRAPPED % (b"-" + b"9" * 60_000),
    "an exponent past any": WRAPPED % b"1e99999999",
    "an exponent below any": WRAPPED % b"1e-99999999",
    "64 bits and one": b'{"name":"k","amount":18446744073709551616,"limit":9223372036854775808,"overlap":9e18}',
    "infinite money": b'{"amount":"1e999999999","meter":"cost","window":"day","scope":"workspace"}',
    "money of many digits": b'{"amount":"' + b"9" * 50_000 + b'","meter":"cost","window":"day","scope":"workspace"}',
    "money that is none": b'{"amount":"NaN","meter":"cost","window":"day","scope":"workspace"}',
    "fractions of fractions": b'{"amount":"0.' + b"0" * 50_000 + b'1","meter":"cost","window":"day","scope":"user"}',
    "one name many times": b"{" + b'"name":"k",' * 5_000 + b'"name":1}',
    "names that meet in a table": b"{" + b",".join(b'"%d":1' % (n * 0x1FFFFFFFFFFFFFFF) for n in range(2_500)) + b"}",
    "a prototype": b'{"name":"k","__proto__":{"role":"admin"},"constructor":{"prototype":{"role":"admin"}}}',
    "dunder names": b'{"name":"k","__class__":"x","__init__":{"__globals__":{}},"model_fields":{}}',
    "YAML": b"!!python/object/apply:os.system [id]",
    "XML": b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>',
    "a pickle": b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
}


def taking_bodies() -> list[Route]:
    found = [route for route in routes() if route.body is not None]
    assert {"POST /auth/login", "POST /api/keys", "POST /v1/chat/completions"} <= {str(route) for route in found}
    return found


async def kept(attacked: Attacked) -> dict[str, list[str]]:
    """Every row but the ledger's."""
    return {name: rows for name, rows in (await attacked.dump()).items() if not name.startswith("ledger_")}


async def resident(attacked: Attacked) -> int:
    """What the gateway's processes hold in memory, in bytes."""
    return sum(process.memory_info().rss for process in attacked.gateway.tree())


async def test_no_body_breaks_a_route_or_is_taken(attacked: Attacked) -> None:
    before = await kept(attacked)
    bodies = {**UNREADABLE, **ODD, **BOMBS}
    for route, by in itertools.product(taking_bodies(), ("admin", None)):
        # Nobody's are refused before they are understood: a few show it.
        for name, body in bodies.items() if by else list(BOMBS.items())[:4]:
            if name in ("null", "nothing") and {"type": "null"} in (route.body or {}).get("anyOf", ()):
                continue
            answer = await attacked.call(
                route.method, route.url(), by=by, content=body, headers={"Content-Type": "application/json"}
            )
            what = f"{name} to {route} by {by}: {answer.status_code} {answer.text[:200]}"
            # A parameter that is nobody's here goes on to the model as it was written.
            is_passed_on = route.path.startswith("/v1/") and "exponent" in name and by is not None
            assert (200 if is_passed_on else 400) <= answer.status_code < 500, what
            assert is_passed_on or answer.json()["type"] == "error", what
            assert len(answer.content) < 20_000, what
    assert await kept(attacked) == before
    assert "Traceback" not in attacked.gateway.output()


async def test_a_field_of_a_valid_body_takes_no_text_that_is_none(attacked: Attacked) -> None:
    """Lone surrogates, NUL and overlong forms where a text is expected: by the byte, as no client's library would."""
    before = await kept(attacked)
    hostile = (rb"\ud800", rb"\udfff\ud800", rb"\u0000", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", rb"\x41")
    for route in taking_bodies():
        for parameter, text in itertools.product([one for one in route.of("body") if one.is_text], hostile):
            mark = "hostile-text"
            body = orjson.dumps(route.sample(parameter.place, mark)).replace(mark.encode(), text)
            answer = await attacked.call(
                route.method, route.url(), by="admin", content=body, headers={"Content-Type": "application/json"}
            )
            what = f"{text!r} as {parameter.name} of {route}: {answer.status_code} {answer.text[:200]}"
            # What a caller says to a model is the model's to read.
            is_said = route.path.startswith("/v1/") and text == rb"\u0000"
            assert answer.status_code < 500 if is_said else 400 <= answer.status_code < 500, what
    assert await kept(attacked) == before


async def test_a_body_that_unpacks_to_more_is_refused_packed(attacked: Attacked) -> None:
    bomb = gzip.compress(b"[" * (8 * MIB))
    assert len(bomb) < 20_000
    for route, coding in itertools.product(taking_bodies(), ("gzip", "deflate", "br", "zstd", "gzip, gzip")):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        answer = await attacked.call(route.method, route.url(), by="admin", content=bomb, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), route


async def test_a_body_that_is_too_large_is_refused_at_its_bound_however_it_is_framed(attacked: Attacked) -> None:
    before = await resident(attacked)
    for route in taking_bodies():
        bound = 20 * MIB if route.path.startswith("/v1/") else 64 * 1024
        head = f"{route.method} {route.url()} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"x-forwarded-for: {attacked.an_address()}\r\nauthorization: Bearer {attacked.credentials['admin']}\r\n"
        for length in (bound + 1, 10**15, 2**63 - 1):
            async with asyncio.timeout(30), RawClient(attacked.gateway.base_url) as client:
                # None of it is sent.
                await client.send_raw(f"{head}content-length: {length}\r\n\r\n".encode())
                assert (await client.head()).status == 413, f"{route} of {length} bytes"
        async with asyncio.timeout(60), RawClient(attacked.gateway.base_url) as client:
            await client.send_raw(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
            for _ in range(bound // 0x10000 + 2):
                await client.send_raw(piece)
            assert (await client.head()).status == 413, f"{route} in chunks"
    assert await resident(attacked) - before < MOST_KEPT


async def test_many_bombs_at_once_leave_the_gateway_as_it_was(attacked: Attacked) -> None:
    before = await resident(attacked)
    key = attacked.credentials["caller"]
    deep = b'{"model":"echo","messages":' + b"[" * (4 * MIB) + b"]" * (4 * MIB) + b"}"
    wide = b'{"model":"echo","messages":[' + b'{"role":"user","content":"x"},' * 20_000 + b"1]}"
    answers = await asyncio.gather(
        *(
            attacked.call(
                "POST",
                "/v1/chat/completions",
                by=key,
                content=body,
                headers={"Content-Type": "application/json"},
            )
            for body in (deep, wide) * 3
        )
    )
    assert {answer.status_code for answer in answers} == {400}

    async def is_let_go() -> bool:
        return await resident(attacked) - before < MOST_KEPT

    await eventually(is_let_go)
    assert (await attacked.call("GET", "/auth/me", by="admin")).status_code == 200
