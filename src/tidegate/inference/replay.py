"""One kept answer in both forms: what is worth keeping, a stream's copy as a whole answer, a whole answer as a stream.

Kept is the whole answer, byte for byte where it came so. A stream is made a whole answer by what it says; a whole
answer is made a stream of the same id, with its text in pieces, as OpenAI sends them.
"""

from collections.abc import Iterator
from typing import Any, Final

import orjson

from tidegate.errors import UpstreamError
from tidegate.inference.collect import Collector
from tidegate.inference.sse import DONE, data_event

MOST_BYTES: Final = 1024 * 1024
# A stream's events are some hundred bytes for each token.
MOST_STREAMED_BYTES: Final = 4 * MOST_BYTES
# Clients that read line by line often bound a line to 64 KiB; a character is at most six bytes in JSON.
_PIECE_CHARACTERS: Final = 4096
_TEXTS: Final = ("reasoning_content", "reasoning", "content", "refusal")
# What was cut by a filter may pass tomorrow; what calls tools asks its caller to act, once, under an id of its own.
_WORTH_KEEPING: Final = ("stop", "length")
# Beside them: audio is referred to by an id that its vendor forgets.
_NEVER_KEPT: Final = ("tool_calls", "function_call", "audio")


class StreamCopy:
    """Gathers a stream's events, within `MOST_STREAMED_BYTES`."""

    def __init__(self, upstream: str) -> None:
        self._collector: Collector | None = Collector(upstream)
        self._size = 0

    def add(self, event: bytes) -> None:
        """Takes one event, of whatever kind. Never raises."""
        if self._collector is None:
            return
        self._size += len(event)
        if self._size > MOST_STREAMED_BYTES:
            self._collector = None
            return
        try:
            self._collector.add(event)
        except UpstreamError:
            self._collector = None

    def body(self) -> bytes | None:
        """The whole answer; None where it is too large, or not all of it was understood."""
        try:
            return None if self._collector is None else self._collector.body()
        except UpstreamError:
            return None


def finish_reason_of(body: bytes, choices: int) -> str | None:
    """The finish reason of an answer that is worth keeping: complete in every choice, and small. None for others."""
    if len(body) > MOST_BYTES:
        return None
    try:
        answer = orjson.loads(body)
        given = answer["choices"]
        if answer.get("error") or len(given) != choices:
            return None
        reasons = [choice["finish_reason"] for choice in given if _is_plain(choice["message"])]
        # What is nested deeper than it can be written again is a stream for nobody; a stream adds no level.
        orjson.dumps(answer)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, AttributeError, KeyError, TypeError):
        return None
    if len(reasons) != choices or not all(reason in _WORTH_KEEPING for reason in reasons):
        return None
    return str(reasons[0])


def stream_of(body: bytes, *, wants_usage: bool) -> bytes:
    """The events of a stream that says what a kept answer says, `[DONE]` included."""
    answer: dict[str, Any] = orjson.loads(body)
    usage = answer.pop("usage", None)
    head = {**answer, "object": "chat.completion.chunk"}
    # As OpenAI does: where usage is asked for, every chunk before its own says that it has none.
    tail = {"usage": None} if wants_usage else {}
    events = [
        data_event(orjson.dumps({**head, "choices": [choice], **tail}))
        for whole in answer["choices"]
        for choice in _pieces(whole)
    ]
    if wants_usage and usage is not None:
        events.append(data_event(orjson.dumps({**head, "choices": [], "usage": usage})))
    return b"".join(events) + DONE


def _is_plain(message: dict[str, Any]) -> bool:
    return not any(message.get(name) for name in _NEVER_KEPT)


def _pieces(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choices of the chunks that say what one whole choice says: who speaks, its texts, its end."""
    message: dict[str, Any] = whole["message"]
    index = whole.get("index", 0)
    texts = {name: message[name] for name in _TEXTS if isinstance(message.get(name), str) and message[name]}
    opening = {name: value for name, value in message.items() if name not in texts}
    logprobs = whole.get("logprobs")
    yield _choice(index, {"role": "assistant", "content": "", **opening}, logprobs)
    for name, text in texts.items():
        for start in range(0, len(text), _PIECE_CHARACTERS):
            yield _choice(index, {name: text[start : start + _PIECE_CHARACTERS]})
    yield {**_choice(index, {}), "finish_reason": whole["finish_reason"]}


def _choice(index: int, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
