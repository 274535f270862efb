"""What the inference routes are told of in the OpenAPI document: answers, and the headers that requests may carry.

Nothing is validated by these: an upstream's answer passes as it came, and headers are read by `exchange` and `caching`.
Sources: the OpenAI API reference ("Create chat completion", "List models"), the Anthropic API's ("List Models").
"""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

Json = dict[str, Any]


class ChatChoice(BaseModel):
    model_config = ConfigDict(extra="allow")

    index: int
    message: Json
    finish_reason: str | None = None


class ChatCompletion(BaseModel):
    """An upstream's answer, as it came. A streamed one is the same in pieces, as server-sent events."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str
    choices: list[ChatChoice]
    usage: Json | None = None


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(BaseModel):
    object: Literal["list"]
    data: list[OpenAIModel]


class AnthropicModel(BaseModel):
    type: Literal["model"]
    id: str
    display_name: str
    created_at: str


class AnthropicModels(BaseModel):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def _header(name: str, description: str, **schema: Any) -> Json:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_SPAN: Final = r"([1-9][0-9]{0,3}s|[1-9][0-9]{0,2}m|([1-9]|1[0-9]|2[0-4])h)"
_TAG: Final = r"[^=,\x00-\x20]{1,64}=[^,\x00-\x20]{0,256}"

CHAT: Final[Json] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    },
    "parameters": [
        _header(
            "X-Tidegate-Deadline-Ms",
            "How many milliseconds the whole request may take, the queue included: a day at most.",
            type="string",
            # From 1 to 86,400,000.
            pattern=r"^([1-9][0-9]{0,6}|[1-7][0-9]{7}|8[0-5][0-9]{6}|86[0-3][0-9]{5}|86400000)$",
        ),
        _header(
            "X-Tidegate-Cache",
            "How old a kept answer may be, as `90s`, `10m` or `1h`; with `, force` also where the request need not "
            "have one answer. `off` asks for none.",
            type="string",
            pattern=rf"^(off|{_SPAN}(, force)?)$",
        ),
        _header("X-Tidegate-End-User", "Whom the request is for.", type="string", maxLength=256),
        _header("X-Tidegate-Session", "What the request belongs to.", type="string", maxLength=256),
        _header(
            "X-Tidegate-Tags",
            "Up to 16 pairs `name=value`, separated by commas.",
            type="string",
            pattern=rf"^({_TAG}(,{_TAG}){{0,15}})?$",
        ),
    ],
}
"""What the road reads by itself of a chat request: FastAPI sees neither the body nor these headers."""

CHAT_ANSWERS: Final[dict[int | str, Json]] = {
    200: {
        "model": ChatCompletion,
        "content": {"text/event-stream": {}},
        "headers": {
            "X-Tidegate-Entry-ID": {
                "description": "The ledger's entry of this request: `GET /api/requests/{entry_id}`.",
                "schema": {"type": "string", "format": "uuid"},
            },
            "X-Tidegate-Upstream": {"description": "Who answered.", "schema": {"type": "string"}},
        },
    }
}
