"""What a scripted upstream does with a request: values that say how it answers, and how it fails.

A behaviour has one method, `answer(exchange)`. `Completion` speaks the OpenAI chat wire format, streamed or not as the
request asks, with every fault that a real upstream has shown; `Answer` is a fixed body with any status; the others wrap
one of these. All are frozen: a variant is `dataclasses.replace(behaviour, …)`.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

from tests.support.wire import FOREVER, Exchange, Gate, Headers, Pause

Ending = Literal["done", "no_done", "fin", "rst", "half_fin", "half_rst", "error_event"]
Delta = str | Mapping[str, object]


class Behaviour(Protocol):
    async def answer(self, exchange: Exchange) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The figures that the upstream names. Without `completion` it is one for each delta."""

    prompt: int = 7
    completion: int | None = None
    cached: int = 0
    reasoning: int = 0

    def wire(self, deltas: int) -> dict[str, object]:
        completion = deltas if self.completion is None else self.completion
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": completion,
            "total_tokens": self.prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


@dataclass(frozen=True, kw_only=True)
class Sse:
    """How events are written. `split`: each event a write of its own, all that is ready in one, or n bytes each."""

    newline: str = "\n"
    space: bool = True
    comments: bool = False
    multiline: bool = False
    split: Literal["event", "joined"] | int = "event"

    def event(self, data: str) -> bytes:
        field_name = "data: " if self.space else "data:"
        lines = [field_name + line for line in data.split("\n")]
        if self.comments:
            lines.insert(0, ": a comment" + self.newline)
        return self.newline.join([*lines, "", ""]).encode()

    def json(self, value: object) -> bytes:
        return self.event(json.dumps(value, ensure_ascii=False, indent=1 if self.multiline else None))


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A chat completion. `pauses[n]` stands before delta n, `pauses[len(deltas)]` before the ending.

    The endings but `done` and `no_done` come in place of the finish reason, the usage and `[DONE]`; not streamed, they
    cut the body in half.

    >>> Completion(deltas=["a", "b", "c"], pauses={1: FOREVER})     # stalls after the first token
    """

    deltas: Sequence[Delta] = ("Hello", ",", " world")
    finish_reason: str | None = "stop"
    role_chunk: bool = True
    usage: Usage | None = Usage()
    usage_when: Literal["asked", "always", "never"] = "asked"
    usage_in: Literal["own_chunk", "last_chunk", "every_chunk"] = "own_chunk"
    null_usage: bool = False
    """Whether every chunk that has no usage says `"usage": null`."""
    before_headers: Pause = 0.0
    pauses: Mapping[int, Pause] = field(default_factory=lambda: MappingProxyType({}))
    gap_s: float = 0.0
    ending: Ending = "done"
    error: Mapping[str, object] = field(
        default_factory=lambda: MappingProxyType({"message": "The server had an error", "type": "server_error"})
    )
    sse: Sse = Sse()
    headers: Headers = (("x-request-id", "upstream-request-1"),)
    message: Mapping[str, object] | None = None
    """Not streamed: the whole message in place of the deltas' text."""

    async def answer(self, exchange: Exchange) -> None:
        await exchange.pause(self.before_headers)
        body = exchange.received.body
        if body.get("stream"):
            await _Stream(self, exchange, body).run()
        else:
            await self._answer_whole(exchange, body)

    async def _answer_whole(self, exchange: Exchange, body: Mapping[str, Any]) -> None:
        text = "".join(delta for delta in self.deltas if isinstance(delta, str))
        message = self.message or {"role": "assistant", "content": text}
        whole: dict[str, object] = {
            "id": "chatcmpl-scripted",
            "object": "chat.completion",
            "created": 1700000000,
            "model": body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
        }
        if self.usage is not None and self.usage_when != "never":
            whole["usage"] = self.usage.wire(len(self.deltas))
        data = json.dumps(whole).encode()
        await exchange.start(200, [("content-type", "application/json"), *self.headers], length=len(data))
        for pause in self.pauses.values():
            await exchange.pause(pause)
        if self.ending in ("done", "no_done"):
            await exchange.send(data)
            await exchange.finish()
        else:
            await exchange.send(data[: len(data) // 2])
            _die(exchange, self.ending)


class _Stream:
    """One stream of a `Completion`: holds back what `Sse.split` says, and otherwise sends in order."""

    def __init__(self, script: Completion, exchange: Exchange, body: Mapping[str, Any]) -> None:
        self._script = script
        self._exchange = exchange
        self._model = body.get("model")
        options = body.get("stream_options") or {}
        asked = bool(options.get("include_usage"))
        self._gives_usage = script.usage_when == "always" or (script.usage_when == "asked" and asked)
        self._held = bytearray()

    async def run(self) -> None:
        script = self._script
        await self._exchange.start(200, [("content-type", "text/event-stream; charset=utf-8"), *script.headers])
        if script.role_chunk:
            await self._send(self._chunk({"role": "assistant", "content": ""}, sent=0))
        for n, delta in enumerate(script.deltas):
            await self._pause(script.pauses.get(n, 0))
            await self._send(self._chunk(_delta(delta), sent=n + 1))
            await self._pause(script.gap_s)
        await self._pause(script.pauses.get(len(script.deltas), 0))
        await self._end()

    async def _end(self) -> None:
        script = self._script
        if script.ending in ("done", "no_done"):
            await self._finish_normally()
        elif script.ending == "error_event":
            await self._send(script.sse.json({"error": dict(script.error)}))
        elif script.ending in ("half_fin", "half_rst"):
            event = self._chunk({"content": "never whole"}, sent=len(script.deltas))
            await self._send(event[: len(event) // 2], whole=False)
        await self._flush()
        if script.ending in ("fin", "rst", "half_fin", "half_rst"):
            _die(self._exchange, script.ending)
        else:
            await self._exchange.finish()

    async def _finish_normally(self) -> None:
        script, sent = self._script, len(self._script.deltas)
        if script.finish_reason is not None:
            await self._send(self._chunk({}, sent=sent, finish_reason=script.finish_reason))
        if self._gives_usage and script.usage is not None and script.usage_in == "own_chunk":
            await self._send(script.sse.json({**self._frame(), "choices": [], "usage": script.usage.wire(sent)}))
        if script.ending == "done":
            await self._send(script.sse.event("[DONE]"))

    def _chunk(self, delta: Mapping[str, object], *, sent: int, finish_reason: str | None = None) -> bytes:
        script = self._script
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        chunk: dict[str, object] = {**self._frame(), "choices": [choice]}
        is_last = finish_reason is not None or (script.finish_reason is None and sent == len(script.deltas))
        place = script.usage_in
        if self._gives_usage and script.usage and (place == "every_chunk" or (place == "last_chunk" and is_last)):
            chunk["usage"] = script.usage.wire(sent)
        elif script.null_usage:
            chunk["usage"] = None
        return script.sse.json(chunk)

    def _frame(self) -> dict[str, object]:
        created = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1700000000}
        return {**created, "model": self._model}

    async def _send(self, event: bytes, *, whole: bool = True) -> None:
        split = self._script.sse.split
        if split == "joined":
            self._held += event
        elif split == "event":
            await self._exchange.send(event)
        else:
            for start in range(0, len(event), split):
                await self._exchange.send(event[start : start + split])
                # The client's turn, so that it may read the piece alone.
                await asyncio.sleep(0)
        self._exchange.received.sent_events += whole

    async def _pause(self, pause: Pause) -> None:
        if pause:
            await self._flush()
            await self._exchange.pause(pause)

    async def _flush(self) -> None:
        held, self._held = bytes(self._held), bytearray()
        await self._exchange.send(held)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A fixed answer: any status, any body, whether or not a stream was asked for."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Headers = ()
    before_headers: Pause = 0.0

    async def answer(self, exchange: Exchange) -> None:
        await exchange.pause(self.before_headers)
        await exchange.start(self.status, [("content-type", self.content_type), *self.headers], length=len(self.body))
        await exchange.send(self.body)
        await exchange.finish()


@dataclass(frozen=True, kw_only=True)
class RefusesStreamOptions:
    """Answers a request with `stream_options` with a 400, as old vLLM and others do, and any other with `otherwise`."""

    status: int = 400
    otherwise: Behaviour = field(default_factory=Completion)

    async def answer(self, exchange: Exchange) -> None:
        if "stream_options" in exchange.received.body:
            message = "Unrecognized request argument supplied: stream_options"
            await refusal(self.status, message, param="stream_options").answer(exchange)
        else:
            await self.otherwise.answer(exchange)


@dataclass(frozen=True, kw_only=True)
class ClosesUnderTheClient:
    """Ends keep-alive connections unannounced: right after an answer, or when a second request comes on one."""

    when: Literal["after_the_answer", "on_the_next_request"] = "on_the_next_request"
    reset: bool = False
    otherwise: Behaviour = field(default_factory=Completion)

    async def answer(self, exchange: Exchange) -> None:
        if self.when == "on_the_next_request" and len(exchange.received.connection.requests) > 1:
            _die(exchange, "rst" if self.reset else "fin")
            return
        await self.otherwise.answer(exchange)
        if self.when == "after_the_answer":
            _die(exchange, "rst" if self.reset else "fin")


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Streams the last message's words back, so that answers which were mixed up show."""

    like: Completion = field(default_factory=Completion)

    async def answer(self, exchange: Exchange) -> None:
        content = str(exchange.received.body["messages"][-1]["content"])
        words = [word if n == 0 else f" {word}" for n, word in enumerate(content.split(" "))]
        await replace(self.like, deltas=words).answer(exchange)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Writes bytes that need not be HTTP, then ends the connection."""

    data: bytes
    reset: bool = False

    async def answer(self, exchange: Exchange) -> None:
        await exchange.raw(self.data)
        _die(exchange, "rst" if self.reset else "fin")


def refusal(
    status: int,
    message: str = "Refused by the script",
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Headers = (),
) -> Answer:
    """An error in OpenAI's form. Without a code it is null, as OpenAI sends for many."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Answer(status=status, body=json.dumps(body).encode(), headers=headers)


def html(status: int = 502) -> Answer:
    """A proxy's page where JSON belongs."""
    return Answer(status=status, body=b"<html><body>Bad gateway</body></html>", content_type="text/html")


def flood(total_bytes: int = 64 * 1024 * 1024, *, event_bytes: int = 16 * 1024) -> Completion:
    """A stream as fast as the socket takes it: far more than all buffers between, for slow readers."""
    return Completion(deltas=("x" * event_bytes,) * (total_bytes // event_bytes))


def silent() -> Completion:
    """Takes the request and never answers."""
    return Completion(before_headers=FOREVER)


def stalled(after: int = 1, *, at: Gate | None = None) -> Completion:
    """Sends so many tokens, then nothing more (or nothing until the gate opens)."""
    deltas = tuple(f"{'' if n == 0 else ' '}token{n}" for n in range(after + 1))
    return Completion(deltas=deltas, pauses=MappingProxyType({after: at or FOREVER}))


def _delta(delta: Delta) -> Mapping[str, object]:
    return {"content": delta} if isinstance(delta, str) else delta


def _die(exchange: Exchange, ending: Ending) -> None:
    if ending.endswith("rst"):
        exchange.reset()
    else:
        exchange.close()
