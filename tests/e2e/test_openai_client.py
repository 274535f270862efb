"""The official `openai` package against the gateway, with only `base_url` and `api_key` set."""

import asyncio
from collections.abc import AsyncIterator, Callable

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionUserMessageParam

from tests.support.behaviours import Behaviour, Completion, html, refusal
from tests.support.caller import Caller, catalogue_of, made_key
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream
from tests.support.wire import FOREVER

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def gateway(
    upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayProcess]:
    plain = {"base_url": upstream.base_url, "breaker": "off", "count": "deltas"}
    brief = {**plain, "timeouts": {"headers_s": 0.2, "total_s": 0.2}}
    upstreams = {
        "plain": plain,
        "brief": brief,
        "full": {**plain, "max_concurrency": 1, "queue": {"length": 0, "deadline_s": 1}},
        "echo": {"provider": "echo"},
    }
    models = {"m": "plain/m", "echo": "echo/echo", "brief": "brief/m", "full": "full/m"}
    plan = GatewayPlan(catalogue=catalogue_of(upstreams, models))
    async with GatewayProcess(tmp_path_factory.mktemp("served"), plan) as started:
        yield started


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=gateway.api_url, api_key=gateway.api_key) as opened:
        yield opened


def in_thread(gateway: GatewayProcess, work: Callable[[openai.OpenAI], str]) -> str:
    with openai.OpenAI(base_url=gateway.api_url, api_key=gateway.api_key) as opened:
        return work(opened)


async def test_an_answer_is_whole(client: openai.AsyncOpenAI, gateway: GatewayProcess) -> None:
    answer = await client.chat.completions.create(model="m", messages=HELLO)
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message.content == "Hello, world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    assert answer._request_id is not None
    entry = await Caller(gateway.base_url).entry(answer._request_id)
    assert (entry["outcome"], entry["output_tokens"]) == ("completed", 3)


async def test_a_stream_comes_in_chunks(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content] == ["Hello", ",", " world"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    assert stream.response.headers["x-request-id"]
    assert stream.response.headers["x-tidegate-entry-id"]


async def test_usage_comes_where_it_is_asked_for(client: openai.AsyncOpenAI) -> None:
    for model, prompt, completion in [("m", 7, 3), ("echo", 1, 1)]:
        stream = await client.chat.completions.create(
            model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        last = [chunk async for chunk in stream][-1]
        assert last.choices == []
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (prompt, completion)


async def test_the_streaming_helper_collects_a_completion(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="m", messages=HELLO) as stream:
        kinds = [event.type async for event in stream]
    assert "content.delta" in kinds
    assert (await stream.get_final_completion()).choices[0].message.content == "Hello, world"


async def test_the_synchronous_client_works_alike(gateway: GatewayProcess) -> None:
    def whole(client: openai.OpenAI) -> str:
        return client.chat.completions.create(model="m", messages=HELLO).choices[0].message.content or ""

    def streamed(client: openai.OpenAI) -> str:
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(in_thread, gateway, whole) == "Hello, world"
    assert await asyncio.to_thread(in_thread, gateway, streamed) == "Hello, world"


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["m", "echo", "brief", "full"]
    assert (await client.models.retrieve("m")).id == "m"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("n")


async def test_a_comment_is_nothing_to_the_client(client: openai.AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(pauses={0: 0.3}))
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello, world"


UPSTREAM_FAILURES: dict[str, tuple[Behaviour, type[openai.APIStatusError], int, str]] = {
    "bad-request": (refusal(400, "no", code="bad"), openai.BadRequestError, 400, "bad"),
    "not-found": (refusal(404, "no", code="gone"), openai.NotFoundError, 404, "gone"),
    "conflict": (refusal(409, "no", code="clash"), openai.ConflictError, 409, "clash"),
    "unprocessable": (refusal(422, "no", code="odd"), openai.UnprocessableEntityError, 422, "odd"),
    "its-key": (refusal(401, "no"), openai.InternalServerError, 502, "upstream_error"),
    "its-limit": (refusal(429, "no"), openai.InternalServerError, 502, "upstream_error"),
    "its-fault": (refusal(500, "no"), openai.InternalServerError, 502, "upstream_error"),
    "a-page": (html(200), openai.InternalServerError, 502, "upstream_error"),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("failure", UPSTREAM_FAILURES)
async def test_an_upstreams_failure_is_the_right_exception(
    failure: str, streamed: bool, client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    behaviour, kind, status, code = UPSTREAM_FAILURES[failure]
    upstream.enqueue(behaviour)
    with pytest.raises(kind) as raised:
        await client.with_options(max_retries=0).chat.completions.create(model="m", messages=HELLO, stream=streamed)
    assert type(raised.value) is kind
    assert raised.value.status_code == status
    assert raised.value.code == code
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]


async def test_what_the_gateway_refuses_is_the_right_exception(
    client: openai.AsyncOpenAI, gateway: GatewayProcess, upstream: ScriptedUpstream
) -> None:
    once = client.with_options(max_retries=0)

    with pytest.raises(openai.AuthenticationError) as no_key:
        await once.with_options(api_key="tg_testkey2_" + "x" * 43).chat.completions.create(model="m", messages=HELLO)
    assert (no_key.value.status_code, no_key.value.code) == (401, "invalid_api_key")

    held = await made_key(gateway, models=("echo",))
    with pytest.raises(openai.PermissionDeniedError) as not_allowed:
        await once.with_options(api_key=held).chat.completions.create(model="m", messages=HELLO)
    assert (not_allowed.value.code, not_allowed.value.param) == ("model_not_allowed", "model")
    assert "echo" in not_allowed.value.message

    with pytest.raises(openai.NotFoundError) as unknown:
        await once.chat.completions.create(model="gpt-none", messages=HELLO)
    assert (unknown.value.code, unknown.value.type) == ("model_not_found", "not_found_error")

    with pytest.raises(openai.BadRequestError) as empty:
        await once.chat.completions.create(model="m", messages=[])
    assert (empty.value.code, empty.value.param) == ("invalid_request", "messages")

    upstream.enqueue(Completion(before_headers=FOREVER))
    with pytest.raises(openai.InternalServerError) as slow:
        await once.chat.completions.create(model="brief", messages=HELLO, stream=True)
    assert (slow.value.status_code, slow.value.code) == (504, "upstream_timeout")

    upstream.enqueue(Completion(pauses={1: FOREVER}))
    stream = await once.chat.completions.create(model="full", messages=HELLO, stream=True)
    with pytest.raises(openai.InternalServerError) as full:
        await once.chat.completions.create(model="full", messages=HELLO)
    assert (full.value.status_code, full.value.code) == (503, "overloaded")
    await stream.close()


async def test_a_failure_is_tried_again_by_the_client_as_it_is_used_to(
    client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    before = len(upstream.requests)
    upstream.enqueue(refusal(500), Completion())
    answer = await client.with_options(max_retries=1).chat.completions.create(model="m", messages=HELLO)
    assert answer.choices[0].message.content == "Hello, world"
    assert len(upstream.requests) == before + 2


@pytest.mark.parametrize("ending", ["fin", "rst", "error_event"])
async def test_an_error_in_mid_stream_is_raised_where_it_comes(
    ending: str, client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(ending=ending))  # type: ignore[arg-type]
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
    said: list[str] = []

    async def listen() -> None:
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError) as raised:
        await listen()
    assert "".join(said) == "Hello, world"
    assert raised.value.code == "upstream_error"
    assert raised.value.message.startswith("The upstream 'plain'")


async def test_a_stream_that_is_closed_early_is_let_go(
    client: openai.AsyncOpenAI, gateway: GatewayProcess, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(pauses={1: FOREVER}))
    async with await client.chat.completions.create(model="m", messages=HELLO, stream=True) as stream:
        label = stream.response.headers["x-request-id"]
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    await upstream.wait_for(lambda: upstream.last.closed_early, within_s=2)
    entry = await Caller(gateway.base_url).entry(label)
    assert (entry["outcome"], entry["output_tokens"]) == ("client_disconnected", 1)
