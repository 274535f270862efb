"""What the server answers at its own port: a few requests that change nothing, each within a bound.

Tries are counted down by logging out of a session that there is not: it is limited as a log-in is, by the same
counters, and costs no account a try of its own. Each goes on a connection of its own, so that workers take turns.
"""

import asyncio
import secrets
import ssl
import time
from collections.abc import Mapping
from typing import Any, Self

import httpx2

from tidegate.check.protection import EVIL_ORIGIN, counts_down
from tidegate.check.running import HOSTILE_ID, OWN_ID
from tidegate.check.subject import Answer
from tidegate.tls import client_context

WITHIN_S = 5.0
TRIES = 4
_LOGGED_OUT = 204
_DOCS = ("/docs", "/redoc", "/openapi.json")
_HEALTH = ("/health", "/health/live", "/health/ready")
_LONGEST_HEAD = 64 * 1024
# Of nobody: without a signature (RFC 7519, 6), for an account that there is not.
_FORGED = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiIwIiwiaXNzIjoidGlkZWdhdGUiLCJleHAiOjQxMDI0NDQ4MDB9."
# A documentation network (RFC 5737).
_FORGED_NETWORK = "203.0.113"


class Probes:
    """Asks one server.

    >>> async with Probes("http://127.0.0.1:8000") as probes:
    ...     seen = await probes.everything(origins=[], management_url=None)
    """

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        """`context` knows the certificate of an https server; else the system's authorities do."""
        self._url = url
        self._context = context or client_context()
        self._client = httpx2.AsyncClient(
            verify=self._context,
            timeout=WITHIN_S,
            trust_env=False,
            # Each request on a connection of its own: which worker takes it is for the system to say.
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def everything(self, *, origins: list[str], management_url: str | None) -> dict[str, Answer]:
        """By the names that the checks know; all at once, but for health, which is timed."""
        asked = {**self._refusals(), **self._edge(origins), **self._ids()}
        asked |= {f"docs {path}": self.ask("GET", path) for path in _DOCS}
        if management_url is not None:
            asked |= {f"docs at management {path}": self.ask("GET", path, at=management_url) for path in _DOCS}
        seen = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
        return seen | {f"health {path}": await self.ask("GET", path) for path in _HEALTH}

    async def countdown(self) -> tuple[Answer, ...]:
        """Tries one after the other, each of a session that there is not."""
        tries = [await self._log_out({}) for _ in range(TRIES)]
        if not counts_down(tries) and all(answer.status == _LOGGED_OUT for answer in tries):
            # Once more: tries of a quarter of an hour ago may have left the window in between.
            tries = [await self._log_out({}) for _ in range(TRIES)]
        return tuple(tries)

    async def forged_address(self) -> Answer:
        """One more, as if for somebody else. After the countdown."""
        return await self._log_out({"x-forwarded-for": f"{_FORGED_NETWORK}.{secrets.randbelow(254) + 1}"})

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        at: str | None = None,
    ) -> Answer:
        """Never raises for a server that does not answer."""
        began = time.perf_counter()
        try:
            response = await self._client.request(method, (at or self._url) + path, json=body, headers=headers)
        except (httpx2.HTTPError, OSError) as error:
            return Answer(error=type(error).__name__, took_s=time.perf_counter() - began)
        return Answer(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=_json(response),
            took_s=time.perf_counter() - began,
        )

    def _refusals(self) -> dict[str, Any]:
        login = {"email": "nobody@example.com", "password": "x"}
        return {
            "bad_request": self.ask("GET", "/v1/models?name=%00"),
            "unauthorized": self.ask("GET", "/v1/models"),
            "not_found": self.ask("GET", f"/{secrets.token_hex(8)}"),
            "method_not_allowed": self.ask("DELETE", "/health"),
            "too_large": self._too_large(),
            "unprocessable": self.ask("POST", "/auth/login", body={}),
            "out_of_range_text": self.ask("POST", "/auth/login", body=login | {"password": "x" * 20_000}),
            "out_of_range_number": self.ask("POST", "/auth/login", body=login | {"password": 10**30}),
            "out_of_range_kind": self.ask("POST", "/auth/login", body=[[[]]]),
            "forged_token": self.ask("GET", "/auth/me", headers={"authorization": f"Bearer {_FORGED}"}),
        }

    def _edge(self, origins: list[str]) -> dict[str, Any]:
        asked = {
            "cors_get_evil": self.ask("GET", "/health/live", headers={"origin": EVIL_ORIGIN}),
            "cors_preflight_evil": self._preflight(EVIL_ORIGIN),
        }
        return asked | ({"cors_preflight_own": self._preflight(origins[0])} if origins else {})

    def _ids(self) -> dict[str, Any]:
        return {
            "id own": self.ask("GET", "/health/live", headers={"x-request-id": OWN_ID}),
            "id none": self.ask("GET", "/health/live"),
            "id hostile": self.ask("GET", "/health/live", headers={"x-request-id": HOSTILE_ID}),
        }

    async def _preflight(self, origin: str) -> Answer:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        return await self.ask("OPTIONS", "/v1/chat/completions", headers=headers)

    async def _log_out(self, headers: Mapping[str, str]) -> Answer:
        token = f"tgr_{secrets.token_urlsafe(32)}"
        return await self.ask("POST", "/auth/logout", body={"refresh_token": token}, headers=headers)

    async def _too_large(self) -> Answer:
        """Announces a body and sends none: it is to be refused by its announcement."""
        url = httpx2.URL(self._url)
        head = (
            f"POST /auth/login HTTP/1.1\r\nhost: {url.netloc.decode()}\r\ncontent-type: application/json\r\n"
            "content-length: 1000000000\r\nconnection: close\r\n\r\n"
        )
        try:
            async with asyncio.timeout(WITHIN_S):
                tls = self._context if url.scheme == "https" else None
                reader, writer = await asyncio.open_connection(url.host, url.port, limit=_LONGEST_HEAD, ssl=tls)
                try:
                    writer.write(head.encode())
                    return await _read_answer(reader)
                finally:
                    writer.transport.abort()
        except (OSError, EOFError, ValueError, LookupError) as error:
            return Answer(error=type(error).__name__)


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    """Raises `EOFError`, `ValueError` and `LookupError` for what is no answer."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    named = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in named}
    body = await reader.readexactly(int(headers["content-length"]))
    response = httpx2.Response(int(first.split()[1]), content=body)
    return Answer(status=response.status_code, headers=headers, body=_json(response))


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
