"""What the local model would ignore or misread is refused, with the field's name; all else passes."""

from typing import Any

import orjson
import pytest

from tidegate.errors import InvalidRequest
from tidegate.upstream.local import check_local_body, check_local_request

TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hello"}], **fields}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"n": 2}, "n"),
        ({"n_cmpl": 2}, "n_cmpl"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n_predict": 5}, "n_predict"),
        ({"id_slot": 0}, "id_slot"),
        ({"return_progress": False}, "return_progress"),
        ({"cache_prompt": True}, "cache_prompt"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"n_probs": 49152}, "n_probs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]},
            "messages.0.content.1.type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "tool", "content": "1", "tool_call_id": "a"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [TOOL]}]},
            "messages.1.tool_calls",
        ),
    ],
)
def test_what_it_would_ignore_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_local_request(request(**fields))
    assert refusal.value.param == param
    assert refusal.value.status == 400
    with pytest.raises(InvalidRequest):
        check_local_body(orjson.dumps(request(**fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [], "tool_choice": "none", "functions": None},
        {"tools": [TOOL], "tool_choice": "none"},
        {"n": 1, "max_tokens": 1, "max_completion_tokens": None, "seed": 0, "temperature": 0},
        {"logprobs": True, "top_logprobs": 20, "stop": ["a"], "logit_bias": {"57": -100}},
        {"response_format": {"type": "json_object"}, "modalities": ["text"], "audio": None},
        {"top_k": 40, "grammar": 'root ::= "a"', "reasoning_effort": "low", "never_heard_of": 1},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": ""}]},
        {"messages": "what is no list is for the road to refuse", "max_tokens": "x"},
    ],
)
def test_what_it_takes_passes(fields: dict[str, Any]) -> None:
    check_local_request(request(**fields))
    check_local_body(orjson.dumps(request(**fields)))
