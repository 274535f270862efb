"""Chat streams as anybody may write them, and a slow reader that parses every event as JSON."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.inference.reading import Kind
from tidegate.inference.sse import data_event, event_data
from tidegate.ledger.entry import Tokens

Json = dict[str, Any]
SAID = ("content", "reasoning_content", "reasoning", "arguments", "refusal")

# The ways in which JSON is written: blanks or none, escapes or none, on one line or on several.
WRITERS: dict[str, Callable[[object], bytes]] = {
    "orjson": lambda chunk: data_event(orjson.dumps(chunk)),
    "unspaced": lambda chunk: data_event(json.dumps(chunk, separators=(",", ":")).encode()),
    "spaced": lambda chunk: data_event(json.dumps(chunk).encode()),
    "spaced, not escaped": lambda chunk: data_event(json.dumps(chunk, ensure_ascii=False).encode()),
    "wide": lambda chunk: data_event(json.dumps(chunk, separators=(" , ", " : ")).encode()),
    "blank before": lambda chunk: data_event(json.dumps(chunk, separators=(",", " :")).encode()),
    "several lines": lambda chunk: (
        b"".join(b"data: " + line.encode() + b"\r\n" for line in json.dumps(chunk, indent=2).splitlines()) + b"\r\n"
    ),
    "no blank behind data": lambda chunk: b"data:" + orjson.dumps(chunk) + b"\n\n",
}
written = st.sampled_from(sorted(WRITERS)).map(WRITERS.__getitem__)

# Text that looks like what the reader searches for.
FORGERIES = [
    '"usage":{"prompt_tokens":1}',
    '"content":"x"',
    '"content": "',
    '"error":{"message":"x"}',
    '"error": "',
    '"finish_reason":"stop"',
    '"role":"assistant"',
    '"choices":[]',
    "[DONE]",
    "data: [DONE]\n\n",
    '\\"content\\":\\"',
    "\\",
    '"',
    "\U0001f600é\u2028\x00",
]
texts = st.lists(st.sampled_from(FORGERIES) | st.text(CHARACTERS, max_size=8), max_size=3).map("".join)
counts = st.integers(0, 10**12)
usages = st.fixed_dictionaries(
    {"prompt_tokens": counts},
    optional={
        "completion_tokens": counts,
        "total_tokens": counts,
        "prompt_tokens_details": st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": st.none() | counts}),
        "completion_tokens_details": st.none()
        | st.fixed_dictionaries({"audio_tokens": counts}, optional={"reasoning_tokens": st.none() | counts}),
    },
)
unread_usages = st.none() | st.sampled_from(
    [{}, {"total_tokens": 3}, {"prompt_tokens": None}, {"prompt_tokens": "3"}, {"prompt_tokens": -1}]
)
tool_calls = st.lists(
    st.fixed_dictionaries({"index": counts, "function": st.fixed_dictionaries({"name": texts, "arguments": texts})}),
    max_size=2,
)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": texts | st.none(),
        "reasoning": texts | st.none(),
        "reasoning_content": texts,
        "refusal": texts | st.none(),
        "tool_calls": tool_calls,
    },
)
choices = st.fixed_dictionaries(
    {"index": st.integers(0, 3), "delta": deltas},
    optional={"finish_reason": st.sampled_from([None, "stop", "length"]), "logprobs": st.just({"content": []})},
)
chunks = st.fixed_dictionaries(
    {"id": texts, "choices": st.lists(choices, max_size=3)},
    optional={
        "usage": usages | unread_usages,
        "error": st.sampled_from([None, False, "", "broken", {"message": '"quoted"'}]),
        "obfuscation": texts,
    },
)


def is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


@dataclass
class SlowReader:
    """Reads the same by `json.loads`, with nothing to be clever about."""

    choices: int = 1
    deltas: int = 0
    text: str = ""
    usage: Json | None = None
    finish_reason: str | None = None
    finished: set[int] = field(default_factory=set)
    done: bool = False

    @property
    def complete(self) -> bool:
        return self.done or len(self.finished) >= self.choices

    def read(self, event: bytes) -> Kind:
        data = event_data(event)
        if data == b"[DONE]":
            self.done = True
            return Kind.DONE
        chunk = json.loads(data)
        said = [value for name, value in members(chunk) if name in SAID and isinstance(value, str) and value]
        self.deltas += bool(said)
        self.text += "".join(said)
        if chunk.get("error"):
            return Kind.ERROR
        usage = chunk.get("usage")
        is_usage = isinstance(usage, dict) and is_count(usage.get("prompt_tokens"))
        if is_usage:
            self.usage = usage
        reasons = {
            choice["index"]: choice["finish_reason"] for choice in chunk["choices"] if choice.get("finish_reason")
        }
        self.finished |= set(reasons)
        for choice in chunk["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if said or reasons:
            return Kind.CONTENT
        if is_usage and not chunk["choices"]:
            return Kind.USAGE
        says_role = any(name == "role" for name, _ in members(chunk))
        return Kind.OPENER if says_role or not chunk["choices"] else Kind.CONTENT

    def tokens(self) -> Tokens | None:
        if self.usage is None:
            return None
        prompt, completion = self.usage["prompt_tokens"], self.usage.get("completion_tokens", 0)
        cached = min((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0, prompt)
        details = self.usage.get("completion_tokens_details") or {}
        reasoning = min(details.get("reasoning_tokens") or 0, completion)
        return Tokens(
            input=prompt - cached,
            cached_input=cached,
            output=completion - reasoning,
            reasoning=reasoning,
        )


def members(value: object) -> Iterator[tuple[str, object]]:
    """Every member of every object, in the order in which they are written."""
    if isinstance(value, dict):
        for name, held in value.items():
            yield name, held
            yield from members(held)
    elif isinstance(value, list):
        for held in value:
            yield from members(held)


def content_chunk(text: str, **more: object) -> Json:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
