"""What the local model cannot do, refused before it is asked: it would ignore most of it and answer 200.

All of this was measured of llama.cpp's server as xllamacpp 2026.10 brings it. What it refuses by itself with a clear
400 is left to it: a prompt that is too long (`exceed_context_size_error`), an unknown `response_format`, a broken
schema. What it takes beyond OpenAI's parameters (`top_k`, `min_p`, `grammar`, …) passes on untouched, as everywhere.
"""

from collections.abc import Mapping, Sequence

import msgspec

from tidegate.errors import InvalidRequest

_MOST_LOGPROBS = 20
_ONE = {
    "n": "The local model makes one choice a request: send n = 1, and as many requests as you want choices.",
    "best_of": "The local model makes one completion a request: leave out best_of.",
    # llama.cpp's own name for n.
    "n_cmpl": "The local model makes one choice a request: leave out n_cmpl.",
}
_AT_LEAST_ONE = ("max_tokens", "max_completion_tokens")
_REFUSED = {
    # It overrides max_tokens, and with it what was reserved.
    "n_predict": "Say max_tokens instead of n_predict.",
    # It ties a request to one of the model's slots, to wait there though others are free.
    "id_slot": "The gateway chooses the model's slot: leave out id_slot.",
    # The gateway asks for it, and takes the events out of the stream again.
    "return_progress": "The local model's progress is not passed on: leave out return_progress.",
    # Its cache is one for all callers.
    "cache_prompt": "The local model keeps nothing of one prompt for the next: leave out cache_prompt.",
    "audio": "The local model answers in text alone: leave out audio.",
    "web_search_options": "The local model cannot search the web: leave out web_search_options.",
}


def check_local_body(body: bytes) -> None:
    """`check_local_request` for a request's body, which is a JSON object."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The local model cannot read the body: {error}.") from None
    check_local_request(fields)


def check_local_request(fields: Mapping[str, object]) -> None:
    """Raises `InvalidRequest` with the field's name for what the local model would ignore, misread or be harmed by."""
    _check_tools(fields)
    for field, message in _ONE.items():
        if fields.get(field) not in (None, 1):
            raise InvalidRequest(message, param=field)
    for field in _AT_LEAST_ONE:
        asked = fields.get(field)
        if isinstance(asked, int | float) and asked < 1:
            # It says one token for 0, and has no limit for a negative number.
            raise InvalidRequest(f"{field} must be at least 1.", param=field)
    for field in ("top_logprobs", "n_probs"):
        asked = fields.get(field)
        if isinstance(asked, int | float) and asked > _MOST_LOGPROBS:
            # It would send its whole vocabulary with every token, 3 MB each.
            raise InvalidRequest(f"{field} must be at most {_MOST_LOGPROBS}.", param=field)
    for field, message in _REFUSED.items():
        if fields.get(field) is not None:
            raise InvalidRequest(message, param=field)
    modalities = fields.get("modalities")
    if isinstance(modalities, Sequence) and any(modality != "text" for modality in modalities):
        raise InvalidRequest('The local model answers in text alone: send modalities = ["text"].', param="modalities")
    messages = fields.get("messages")
    if isinstance(messages, Sequence):
        for position, message in enumerate(messages):
            if isinstance(message, Mapping):
                _check_message(message, f"messages.{position}")


def _check_tools(fields: Mapping[str, object]) -> None:
    """It ignores them all and answers as if there were none."""
    for field, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        chosen = fields.get(choice)
        if fields.get(field) and chosen != "none":
            raise InvalidRequest(
                f"The local model cannot call tools: leave out {field}, or name another model.", param=field
            )
        if chosen not in (None, "none"):
            raise InvalidRequest(
                f"The local model cannot call tools: leave out {choice}, or name another model.", param=choice
            )


def _check_message(message: Mapping[str, object], place: str) -> None:
    if message.get("role") in ("tool", "function"):
        raise InvalidRequest(
            "The local model cannot read the results of tools: name another model for this conversation.",
            param=f"{place}.role",
        )
    for field in ("tool_calls", "function_call"):
        if message.get(field):
            raise InvalidRequest(
                "The local model cannot read calls of tools: name another model for this conversation.",
                param=f"{place}.{field}",
            )
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        for position, part in enumerate(content):
            if isinstance(part, Mapping) and part.get("type") != "text":
                raise InvalidRequest(
                    f"The local model reads text alone, no {str(part.get('type'))[:64]!r}.",
                    param=f"{place}.content.{position}.type",
                )
