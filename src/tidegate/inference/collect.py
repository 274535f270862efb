"""One whole chat answer from a stream, for callers that did not ask to stream of a provider that always does."""

from typing import Any

import orjson

from tidegate.errors import UpstreamError
from tidegate.inference.sse import event_data

_JOINED = ("content", "reasoning_content", "reasoning", "refusal")
_MOST_TOOL_CALLS = 128


class Collector:
    """Gathers chunks into a `chat.completion`. Deltas of strings are joined, tool calls by their index.

    >>> collector = Collector("local"); collector.add(event); body = collector.body()
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        # In pieces until the end: to join each as it comes would cost the square of an answer's length.
        self._texts: dict[tuple[int, str], list[str]] = {}
        self._calls: dict[int, list[_ToolCall]] = {}
        self._usage: Any = None

    def add(self, event: bytes) -> None:
        """Takes one event; comments and `[DONE]` say nothing. Raises `UpstreamError` for what is no chunk."""
        data = event_data(event)
        if not data or data == b"[DONE]":
            return
        try:
            self._add_chunk(orjson.loads(data))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise self._no_completion() from error

    def body(self) -> bytes:
        """The answer as OpenAI gives it. Raises `UpstreamError` where something in it is nested too deep to be told."""
        for (index, key), pieces in self._texts.items():
            self._choices[index]["message"][key] = "".join(pieces)
        for index, calls in self._calls.items():
            self._choices[index]["message"]["tool_calls"] = [call.whole() for call in calls]
        choices = [self._choices[index] for index in sorted(self._choices)]
        answer = {**self._head, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            answer["usage"] = self._usage
        try:
            return orjson.dumps(answer)
        except orjson.JSONEncodeError as error:
            # It writes 254 levels, and reads 1024.
            raise self._no_completion() from error

    def _no_completion(self) -> UpstreamError:
        return UpstreamError(
            f"The upstream {self._upstream!r} sent something that is no chunk of a chat completion.",
            upstream=self._upstream,
        )

    def _add_chunk(self, chunk: dict[str, Any]) -> None:
        if not self._head:
            self._head = {key: value for key, value in chunk.items() if key not in ("choices", "usage", "object")}
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = _index(choice, 0)
        whole = self._choices.setdefault(
            index, {"index": index, "message": {"role": "assistant", "content": None}, "finish_reason": None}
        )
        if choice.get("finish_reason") is not None:
            whole["finish_reason"] = choice["finish_reason"]
        if choice.get("logprobs") is not None:
            self._add_logprobs(whole, choice["logprobs"])
        message = whole["message"]
        delta = choice.get("delta") or {}
        for key, value in delta.items():
            if key == "tool_calls":
                _add_tool_calls(self._calls.setdefault(index, []), value or [])
            elif key in _JOINED and isinstance(value, str):
                self._texts.setdefault((index, key), []).append(value)
            elif value is not None:
                message[key] = value

    def _add_logprobs(self, whole: dict[str, Any], logprobs: dict[str, Any]) -> None:
        kept = whole.setdefault("logprobs", {})
        for key, values in logprobs.items():
            if isinstance(values, list) and isinstance(kept.get(key), list):
                kept[key].extend(values)
            else:
                kept[key] = values


class _ToolCall:
    def __init__(self) -> None:
        self.id: Any = None
        self.texts: dict[str, list[str]] = {"name": [], "arguments": []}

    def whole(self) -> dict[str, Any]:
        function = {key: "".join(pieces) for key, pieces in self.texts.items()}
        call = {"type": "function", "function": function}
        return call | {"id": self.id} if self.id else call


def _add_tool_calls(calls: list[_ToolCall], pieces: list[dict[str, Any]]) -> None:
    for piece in pieces:
        index = _index(piece, len(calls))
        if index >= _MOST_TOOL_CALLS:
            continue
        while len(calls) <= index:
            calls.append(_ToolCall())
        call = calls[index]
        call.id = piece.get("id") or call.id
        function = piece.get("function") or {}
        for key, texts in call.texts.items():
            text = function.get(key) or ""
            if not isinstance(text, str):
                raise TypeError("a piece of a call must be text")
            texts.append(text)


def _index(part: dict[str, Any], otherwise: int) -> int:
    index = part.get("index", otherwise)
    if not isinstance(index, int) or index < 0:
        raise TypeError("an index must be a whole number")
    return index
