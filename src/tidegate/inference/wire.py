"""The OpenAI chat request: what is checked of it, what the road reads of it, and how it goes on.

Known fields are validated strictly; unknown ones pass through untouched. The body that goes on is the body that came,
but for the model's name and `stream_options.include_usage`: top-level members keep their order and every other value
its bytes. It is always written from the members that were read: a name that stands twice goes on once, so what an
upstream reads first is what was authorised and priced.

A large body is bounded before it is validated: what a list of messages costs the loop is its count, not its bytes.
Source: the OpenAI API reference, "Create chat completion".
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tidegate.errors import InvalidRequest

_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
# msgspec raises all of these for bytes that are no JSON, are not of the form, or are nested past its bound.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_MAX_NAME = 256
_MOST_MESSAGES = 10_000
_MOST_PARTS = 20_000
# Below it a body cannot hold enough to be dear: 10,000 empty parts are 100 kB, 20 ms.
_LARGE_BODY_BYTES = 256 * 1024


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


class ContentPart(_Strict):
    """A part of a message: text, an image, audio, a file. Each vendor adds types, so the type's name is open."""

    type: str = Field(min_length=1, max_length=64)
    text: str | None = None


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Field(max_length=_MOST_PARTS, fail_fast=True)] | None = None
    name: str | None = Field(None, max_length=_MAX_NAME)
    tool_call_id: str | None = Field(None, max_length=_MAX_NAME)


class StreamOptions(_Strict):
    include_usage: bool | None = None


class FunctionDefinition(_Strict):
    name: str = Field(min_length=1, max_length=_MAX_NAME)
    description: str | None = Field(None, max_length=100_000)


class Tool(_Strict):
    type: str = Field(min_length=1, max_length=64)
    function: FunctionDefinition | None = None


class ChatRequest(_Strict):
    """The fields that are known; others pass through."""

    # Lists fail fast: a body of 1.5 MB with 500,000 faults took 3.5 s of the loop to describe them all.
    model: str = Field(min_length=1, max_length=_MAX_NAME)
    messages: list[ChatMessage] = Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: Annotated[str, Field(max_length=1024)] | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = (
        None
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=1024, fail_fast=True)] | None = None
    parallel_tool_calls: bool | None = None
    user: Annotated[str, Field(max_length=_MAX_NAME)] | None = None
    safety_identifier: Annotated[str, Field(max_length=_MAX_NAME)] | None = None


_chat_request = TypeAdapter(ChatRequest)


class _TextPart(msgspec.Struct):
    text: str | None = None


class _TextMessage(msgspec.Struct):
    content: str | list[_TextPart] | None = None


class _Texts(msgspec.Struct):
    """What `input_text` reads of a body that was validated: a fifth of the cost of validating it again."""

    messages: list[_TextMessage]


_text_decoder = msgspec.json.Decoder(_Texts)


@dataclass(slots=True)
class ChatCall:
    """A valid chat request: what the road needs of it, and the body as it came."""

    body: bytes
    model: str
    streamed: bool
    wants_usage: bool
    choices: int
    max_output_tokens: int | None
    input_bytes: int
    message_count: int
    end_user: str | None
    protocol: str = "chat"
    _members: dict[str, msgspec.Raw] | None = field(default=None, repr=False)

    @property
    def members(self) -> dict[str, msgspec.Raw]:
        """The body's top-level members, each value as its bytes."""
        if self._members is None:
            self._members = _raw_members.decode(self.body)
        return self._members

    def body_for(self, model: str, *, ask_usage: bool, stream: bool) -> bytes:
        """The body for an upstream that knows the model by this name."""
        ask_usage = ask_usage and not self.wants_usage and stream
        members: dict[str, Any] = dict(self.members)
        members["model"] = model
        if stream != self.streamed:
            members["stream"] = stream
        if ask_usage:
            given = members.get("stream_options")
            options = msgspec.json.decode(given, type=dict[str, msgspec.Raw] | None) if given else None
            members["stream_options"] = {**(options or {}), "include_usage": True}
        return msgspec.json.encode(members)


def parse_chat(body: bytes) -> ChatCall:
    """The call in a request's body. Raises `InvalidRequest`, whose `param` names the field."""
    if len(body) > _LARGE_BODY_BYTES:
        _bound_messages(body)
    try:
        request = _chat_request.validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None
    if b"NaN" in body or b"Infinity" in body:
        _refuse_numbers_that_are_none(body)
    end_user = request.safety_identifier or request.user
    if "\0" in request.model or (end_user is not None and "\0" in end_user):
        raise InvalidRequest("A name holds a NUL character (\\u0000), which no name has.")
    return ChatCall(
        body=body,
        model=request.model,
        streamed=bool(request.stream),
        wants_usage=bool(request.stream_options and request.stream_options.include_usage),
        choices=request.n or 1,
        max_output_tokens=request.max_completion_tokens or request.max_tokens,
        input_bytes=len(body),
        message_count=len(request.messages),
        end_user=end_user,
    )


def input_text(call: ChatCall) -> str:
    """All text of the messages, for a tokenizer to count."""
    request: _Texts | ChatRequest
    try:
        request = _text_decoder.decode(call.body)
    except _UNREADABLE:
        # A name that stands twice: this decoder reads the first of them too, and what counts is the last.
        request = _chat_request.validate_json(call.body)
    parts = []
    for message in request.messages:
        if isinstance(message.content, str):
            parts.append(message.content)
        elif message.content:
            parts += [part.text for part in message.content if part.text]
    return "\n".join(parts)


def _bound_messages(body: bytes) -> None:
    """Refuses a large body with too many messages or parts, at the cost of skimming it."""
    try:
        members = _raw_members.decode(body)
        messages = _raw_list.decode(members.get("messages", b"[]"))
    except _UNREADABLE:
        # Not even this form: validation says what is wrong with it.
        return
    parts = 0
    for message in messages[: _MOST_MESSAGES + 1]:
        content = _content_of(message)
        parts += len(_raw_list.decode(content)) if content.startswith(b"[") else 0
    if len(messages) > _MOST_MESSAGES or parts > _MOST_PARTS:
        raise InvalidRequest(
            f"messages: at most {_MOST_MESSAGES} messages and {_MOST_PARTS} parts in all.", param="messages"
        )


def _content_of(message: msgspec.Raw) -> bytes:
    try:
        return bytes(_raw_members.decode(message).get("content", b"")).lstrip()
    except _UNREADABLE:
        return b""


def _refuse_numbers_that_are_none(body: bytes) -> None:
    """Pydantic takes NaN and Infinity, which are no JSON (RFC 8259, section 6) and which no upstream could read."""
    try:
        _raw_members.decode(body)
    except msgspec.DecodeError:
        raise InvalidRequest("The request's body cannot be read: NaN and Infinity are no JSON.") from None


def _invalid(error: ValidationError) -> InvalidRequest:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    fault = _deepest(faults)
    if fault["type"] == "json_invalid" and "recursion limit" in fault["msg"]:
        # The parser's own bound: four times as deep as the schemas of tools that OpenAI takes.
        return InvalidRequest("The request's body cannot be read: it is nested deeper than 200 levels.")
    if fault["type"] == "json_invalid":
        return InvalidRequest(f"The request's body cannot be read: {fault['msg'].removeprefix('Invalid JSON: ')}.")
    param = _param(fault["loc"])
    if not param:
        return InvalidRequest("The request's body must be a JSON object.")
    if param == "messages" and fault["type"] == "too_short":
        return InvalidRequest("messages must hold at least one message.", param="messages")
    return InvalidRequest(f"{param}: {fault['msg']}.", param=param)


def _deepest(faults: list[ErrorDetails]) -> ErrorDetails:
    """The fault to tell: the first, or where that is a union's, the member's that was understood furthest."""
    place = _param(faults[0]["loc"])
    same = [fault for fault in faults if _param(fault["loc"]).startswith(place)]
    return max(same, key=lambda fault: len(fault["loc"]))


def _param(location: tuple[int | str, ...]) -> str:
    """A place as callers write it: `messages[0].content`. A union's member names are left out."""
    named = ""
    for part in location:
        if isinstance(part, int):
            named += f"[{part}]"
        elif part in ("str", "int", "float") or "[" in part or "-" in part:
            continue
        else:
            named += f".{part}" if named else part
    return named
