"""An OpenID Connect provider that lies as told: an app for a real socket. Each test says what is wrong with it.

    async with ScriptedProvider.running() as provider:
        provider.claims["aud"] = "another client"
        provider.answers["/token"] = stalled

It logs in whomever `claims` say at once, checks PKCE and codes as a provider has to, and records what it saw.
"""

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus, urlencode

from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.support.server import in_process_server

CLIENT_ID, CLIENT_SECRET = "gateway", "a secret with + and % and :"
Json = dict[str, Any]
Answering = Callable[[Request], Awaitable[Response]]


@dataclass
class Code:
    """What a code stands for. `claims` are the ID token's."""

    challenge: str
    redirect_uri: str
    claims: Json


@dataclass
class ScriptedProvider:
    """`claims` stand above what an ID token says of itself, and None takes one away. `answers` stand in for routes.

    `sign` makes the token, `userinfo` is what is told of its access token. `seen` counts requests by path.
    """

    issuer: str = ""
    keys: list[ECKey] = field(default_factory=lambda: [new_key("key-1")])
    claims: Json = field(default_factory=dict)
    userinfo: Json | None = None
    metadata: Json = field(default_factory=dict)
    answers: dict[str, Answering] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    sign: "Callable[[ScriptedProvider, Json], str]" = field(default_factory=lambda: signed)
    codes: dict[str, Code] = field(default_factory=dict)
    forms: list[dict[str, str]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        provider = cls()
        async with in_process_server(provider) as provider.issuer:
            try:
                yield provider
            finally:
                provider.closing.set()

    def is_person(self, subject: str, email: str, *groups: str, **claims: Any) -> None:
        """Who logs in from now on."""
        self.claims = {"sub": subject, "email": email, "email_verified": True, "groups": list(groups), **claims}

    def new_code(self, query: dict[str, str]) -> str:
        """A code of this authorization request."""
        code = secrets.token_urlsafe(16)
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": query["client_id"], "iat": now, "exp": now + 300, "nonce": query["nonce"]}
        whole = {name: value for name, value in {**claims, **self.claims}.items() if value is not None}
        self.codes[code] = Code(query["code_challenge"], query["redirect_uri"], whole)
        return code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        request = Request(scope, receive)
        self.seen[scope["path"]] += 1
        answering = self.answers.get(scope["path"]) or self._routes()[scope["path"]]
        await (await answering(request))(scope, receive, send)

    def _routes(self) -> dict[str, Answering]:
        return {
            "/.well-known/openid-configuration": self._discovery,
            "/jwks": self._jwks,
            "/authorize": self._authorize,
            "/token": self.token,
            "/userinfo": self._userinfo,
        }

    async def _discovery(self, request: Request) -> Response:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
        }
        if self.userinfo is not None:
            document["userinfo_endpoint"] = f"{self.issuer}/userinfo"
        return JSONResponse(document | self.metadata)

    async def _jwks(self, request: Request) -> Response:
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.keys]})

    async def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        answer = {"code": self.new_code(query), "state": query["state"]}
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(answer)}", 302)

    async def token(self, request: Request) -> Response:
        """A code's tokens, once, for who has its verifier."""
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.forms.append(form)
        self.authorizations.append(request.headers.get("authorization"))
        code = self.codes.pop(form["code"], None)
        challenge = _base64(hashlib.sha256(form["code_verifier"].encode()).digest())
        if code is None or code.challenge != challenge or code.redirect_uri != form["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse(
            {"access_token": "access-1", "token_type": "Bearer", "id_token": self.sign(self, code.claims)}
        )

    async def _userinfo(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer access-1"
        return JSONResponse(self.userinfo)


def new_key(key_id: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": key_id, "use": "sig", "alg": "ES256"})


def signed(provider: ScriptedProvider, claims: Json) -> str:
    """By the newest of its keys, as it has to be."""
    key = provider.keys[-1]
    return jwt.encode({"alg": "ES256", "kid": key.kid}, claims, key)


def credentials_of(authorization: str | None) -> tuple[str, str] | None:
    """The client's name and secret of a Basic header, decoded as RFC 6749, 2.3.1, has it."""
    if authorization is None:
        return None
    name, _, secret = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
    return unquote_plus(name), unquote_plus(secret)


def unsigned_parts(header: Json, claims: Json) -> str:
    """The first two parts of a token."""
    return f"{_base64(json.dumps(header).encode())}.{_base64(json.dumps(claims).encode())}"


def stalled(provider: ScriptedProvider) -> Answering:
    """Never answers."""

    async def answering(request: Request) -> Response:
        await provider.closing.wait()
        return Response()

    return answering


def dripping(provider: ScriptedProvider) -> Answering:
    """Sends a byte now and then, so that no single read is slow, and never ends."""

    async def pieces() -> AsyncIterator[bytes]:
        while not provider.closing.is_set():
            yield b" "
            await asyncio.sleep(0.01)

    async def answering(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="application/json")

    return answering


def giant() -> Answering:
    """Sends more than anybody wants."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 65536
            # The server's turn to hear of a hang-up.
            await asyncio.sleep(0)

    async def answering(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="application/json")

    return answering


def fixed(status: int, body: bytes | Json, **headers: str) -> Answering:
    async def answering(request: Request) -> Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(content, status, headers={"content-type": "application/json", **named})

    return answering


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
