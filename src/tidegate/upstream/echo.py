"""The echo provider: no model at all. It streams the last message back word by word, always the same.

For trying the gateway without a model, and for tests. Usage is exact: a word is a token.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from tidegate.errors import UpstreamError
from tidegate.upstream.provider import Answer, UpstreamRequest

_MODEL_ID = "chatcmpl-echo"


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


class _EchoRequest(msgspec.Struct):
    model: str
    messages: list[_Message]
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


_decoder = msgspec.json.Decoder(_EchoRequest)


class EchoAnswer:
    """Implements `Answer` in memory: the chunks that a model's server would send."""

    status = 200
    is_event_stream = True
    request_id = None

    def __init__(self, asked: _EchoRequest) -> None:
        self._asked = asked
        self._words = _words(asked)
        self._limit = asked.max_completion_tokens or asked.max_tokens

    @property
    def passed_headers(self) -> Mapping[str, str]:
        return {}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        said = self._words[: self._limit]
        reason = "length" if len(said) < len(self._words) else "stop"
        choices = range(self._asked.n or 1)
        for choice in choices:
            yield self._chunk(choice, {"role": "assistant", "content": ""}, None)
        for word in said:
            # One turn of the loop a word, as with a socket: echoing is fair to its neighbours.
            await asyncio.sleep(0)
            for choice in choices:
                yield self._chunk(choice, {"content": word}, None)
        for choice in choices:
            yield self._chunk(choice, {}, reason)
        yield self._usage(len(said) * len(choices))
        yield b"data: [DONE]\n\n"

    def _chunk(self, choice: int, delta: dict[str, str], finish_reason: str | None) -> bytes:
        return _event(
            {
                "id": _MODEL_ID,
                "object": "chat.completion.chunk",
                "created": 0,
                "model": self._asked.model,
                "choices": [{"index": choice, "delta": delta, "finish_reason": finish_reason}],
            }
        )

    def _usage(self, output: int) -> bytes:
        prompt = sum(len(_text(message).split()) for message in self._asked.messages)
        return _event(
            {
                "id": _MODEL_ID,
                "object": "chat.completion.chunk",
                "created": 0,
                "model": self._asked.model,
                "choices": [],
                "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
            }
        )


class EchoProvider:
    """Implements `Provider` without a network."""

    streams_only = True

    def check(self, body: bytes) -> None:
        """Refuses nothing: every valid request has a last message."""

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncIterator[Answer]:
        request.was_sent = True
        try:
            asked = _decoder.decode(request.body)
        except msgspec.DecodeError as error:
            # Valid by what stands last under a name; this decoder reads what stands first too.
            name = request.attempt.upstream.name
            raise UpstreamError(f"The upstream {name!r} cannot read the request: {error}.", upstream=name) from None
        yield EchoAnswer(asked)


def _words(asked: _EchoRequest) -> list[str]:
    words = _text(asked.messages[-1]).split()
    return [word if position == 0 else f" {word}" for position, word in enumerate(words)]


def _text(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return " ".join(part.text for part in message.content or () if part.text)


def _event(chunk: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
