"""A caller of any gateway: what it asks, what it is answered, and what the ledger says of it.

`Caller` speaks to a gateway in this process or in its own. `catalogue_of` writes catalogues, and `Script` is an
upstream's answer to the byte.

    reply = await Caller(gateway.base_url).chat("label", model="m")
    entry = await caller.entry("label")
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlencode

from sqlalchemy import update

from tests.support.client import Event, Head, RawClient
from tests.support.server import _SECRETS as SECRETS_OF_GATEWAYS
from tests.support.server import API_KEY, GatewayProcess
from tests.support.waiting import eventually
from tests.support.wire import Exchange, Pause
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.schemas import NewKey
from tidegate.auth.keyring import Keyring
from tidegate.auth.models import ApiKey
from tidegate.ledger.entry import utc_now
from tidegate.storage.database import Database

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
WITHIN_S = 20.0
"""For what must happen, on a machine however busy."""


@dataclass(frozen=True)
class Reply:
    """A whole answer. `events` are a stream's, comments included; `body` is its bytes as they came."""

    head: Head
    body: bytes
    events: tuple[Event, ...] = ()

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        """The `error` of the envelope that ended it: the last event's in a stream, else the body's."""
        envelope = self.events[-1].json if self.events else self.json
        assert envelope["type"] == "error", envelope
        assert envelope["request_id"] == self.head.headers["x-request-id"]
        error: Json = envelope["error"]
        assert set(error) >= {"type", "code", "message", "param"}
        return error

    @property
    def text(self) -> str:
        return "".join(event.content for event in self.spoken)

    @property
    def comments(self) -> int:
        return sum(event.is_comment for event in self.events)

    @property
    def spoken(self) -> list[Event]:
        """The events that carry a chunk: no comment, no error, no `[DONE]`."""
        return [e for e in self.events if not e.is_comment and not e.is_done and "error" not in e.json]

    @property
    def errors(self) -> list[Event]:
        return [e for e in self.events if not e.is_comment and not e.is_done and "error" in e.json]

    @property
    def is_done(self) -> bool:
        """Whether it ended with `[DONE]`."""
        return bool(self.events) and self.events[-1].is_done


@dataclass(frozen=True)
class Caller:
    """One key against one gateway. A label is the request's `X-Request-ID`, by which its entry is found."""

    base_url: str
    api_key: str = API_KEY

    async def ask(
        self, client: RawClient, label: str, *, headers: Mapping[str, str] | None = None, **body: Any
    ) -> None:
        """Sends a chat request, streamed unless it says otherwise."""
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}], **body}
        await client.send("POST", CHAT, headers={**self.credentials(label), **(headers or {})}, json=body)

    async def chat(self, label: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> Reply:
        """A chat request on a connection of its own, to its end."""
        async with asyncio.timeout(60), RawClient(self.base_url) as client:
            await self.ask(client, label, headers=headers, **body)
            return await reply_of(client)

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        body: bytes = b"",
    ) -> Reply:
        """Any request, with the key."""
        async with asyncio.timeout(60), RawClient(self.base_url) as client:
            sent = {**self.credentials(), **(headers or {})}
            await client.send(method, path, headers=sent, json=json, body=body)
            return await reply_of(client)

    async def entries(self, label: str | None = None, *, limit: int = 200) -> list[Json]:
        """The ledger's entries with this label, all without one; newest first."""
        asked = {"limit": str(limit)} | ({} if label is None else {"request_id": label})
        reply = await self.call("GET", f"/api/requests?{urlencode(asked)}")
        assert reply.status == 200, reply.body
        found: list[Json] = reply.json["data"]
        return found

    async def entry(self, label: str, *, within_s: float = WITHIN_S) -> Json:
        """The one entry with this label; waits until it can be read."""

        async def found() -> list[Json]:
            return await self.entries(label)

        entries = await eventually(found, within_s=within_s, what=f"an entry of {label}", poll_s=0.02)
        assert len(entries) == 1, entries
        return checked(entries[0])

    def credentials(self, label: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} | ({} if label is None else {"x-request-id": label})


async def reply_of(client: RawClient) -> Reply:
    """The rest of an answer, from its head on."""
    head = await client.head()
    if not head.headers.get("content-type", "").startswith("text/event-stream"):
        return Reply(head, await client.body())
    events = tuple([event async for event in client.events()])
    return Reply(head, b"".join(event.raw for event in events), events)


async def content(client: RawClient) -> Event:
    """The next event with content; those before it say nothing yet."""
    while True:
        event = await client.event()
        assert event is not None, "the stream ended before its content"
        if event.content:
            return event


def checked(entry: Json) -> Json:
    """An entry, once it is seen to be consistent with itself: its sums are its attempts'."""
    for name in ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"):
        assert entry[name] == sum(attempt[name] for attempt in entry["attempts"]), (name, entry)
    assert [attempt["n"] for attempt in entry["attempts"]] == list(range(1, len(entry["attempts"]) + 1))
    assert entry["ended_at"] >= entry["started_at"]
    return entry


async def made_key(gateway: GatewayProcess, *, expired: bool = False, revoked: bool = False, **new: Any) -> str:
    """A key in the database of a gateway that runs on SQLite, as `tidegate keys create` makes it; its secret."""
    pepper = dict(SECRETS_OF_GATEWAYS)["TIDEGATE_AUTH__API_KEY_PEPPERS"].partition(":")
    database = await Database.open(f"sqlite+aiosqlite:///{gateway.data_dir / 'tidegate.db'}")
    try:
        keys = ApiKeys(database, Keyring({pepper[0]: pepper[2].encode()}))
        created = await keys.create(NewKey(name="made by a test", **new))
        if revoked:
            await keys.revoke(created.prefix)
        if expired:
            async with database.transaction() as session:
                past = utc_now() - timedelta(seconds=1)
                await session.execute(update(ApiKey).where(ApiKey.id == created.id).values(expires_at=past))
    finally:
        await database.aclose()
    return created.secret


# Catalogues


def catalogue_of(upstreams: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """A catalogue's text. An upstream is of provider openai unless it says more; a model is its attempts, or a table.

    >>> catalogue_of({"one": {"base_url": url, "max_concurrency": 1}}, {"m": "one/m", "n": {"attempts": ["one/n"]}})
    """
    lines = []
    for name, table in upstreams.items():
        lines.append(f"[upstreams.{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in {"provider": "openai", **table}.items()]
    for name, model in models.items():
        written = {"attempts": [model] if isinstance(model, str) else model}
        table = model if isinstance(model, Mapping) else written
        lines.append("[[models]]")
        lines += [f"{key} = {_toml(value)}" for key, value in {"name": name, **table}.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return json.dumps(value)


# Upstreams, to the byte


@dataclass(frozen=True, kw_only=True)
class Script:
    """An answer in pieces, each a write of its own or a pause. `ending`: the body's end, or the connection's."""

    pieces: Sequence[bytes | Pause]
    ending: Literal["finish", "fin", "rst"] = "finish"
    status: int = 200
    content_type: str = "text/event-stream"
    headers: Sequence[tuple[str, str]] = ()
    length: int | None = None

    async def answer(self, exchange: Exchange) -> None:
        await exchange.start(self.status, [("content-type", self.content_type), *self.headers], length=self.length)
        for piece in self.pieces:
            if isinstance(piece, bytes):
                await exchange.send(piece)
            else:
                await exchange.pause(piece)
        if self.ending == "finish":
            await exchange.finish()
        elif self.ending == "rst":
            exchange.reset()
        else:
            exchange.close()


def chunk(text: str | None = None, *, finish_reason: str | None = None, **more: object) -> bytes:
    """An event with a chunk as OpenAI writes it: content, a finish reason, or the role that opens a stream."""
    delta = {"role": "assistant", "content": ""} if text is None and finish_reason is None else {}
    delta |= {"content": text} if text is not None else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    written = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(written, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
