"""The gate of the local model, from a worker's side to a scripted engine behind it, over real sockets in one loop."""

import asyncio
import contextlib
import stat
import uuid
from collections import Counter
from functools import partial
from pathlib import Path

import anyio
import pytest
import uvloop

from tests.support.keys_api import KeysApi
from tests.support.model_engine import Model, call, hold, model, worker
from tests.support.stand_in import LOCAL
from tests.support.waiting import eventually
from tests.unit.limits import a_limit
from tidegate.admission.checks import Reserve
from tidegate.admission.desk import Desk
from tidegate.admission.model_gate import SOCKET_NAME, ModelStatus
from tidegate.admission.slots import SlotAsk
from tidegate.admission.steps import Steps
from tidegate.admission.store import UNDO, Check, Spent
from tidegate.errors import Overloaded, RateLimitExceeded, Unavailable
from tidegate.limits.values import Limit, Matched
from tidegate.server.model_door import bind
from tidegate.storage.unix_socket import LONGEST_ADDRESS


class NothingToSeed:
    async def seed(self, tag: str, matched: Matched, check: Check) -> bool:
        raise AssertionError("these limits have no calendar")


def matched(limit: Limit) -> Matched:
    return Matched(limit, f"{limit.id}:")


def _wait(at: Model, number: int) -> bool:
    return at.slots.waiting == number


def _holds(ask: SlotAsk) -> bool:
    return ask.place is None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / SOCKET_NAME


async def test_two_workers_share_the_slots_and_one_key_s_requests_go_in_their_order(path: Path) -> None:
    order: list[int] = []
    may_leave = [asyncio.Event() for _ in range(6)]

    async with model(path, slots=2) as at, anyio.create_task_group() as group:
        workers = [worker(path), worker(path)]

        async def one(n: int) -> None:
            async with hold(workers[n % 2]):
                order.append(n)
                await may_leave[n].wait()

        def came(number: int) -> bool:
            return at.slots.in_use + at.slots.waiting == number

        for n in range(6):
            group.start_soon(one, n)
            await eventually(partial(came, n + 1))
        await eventually(lambda: sum(gate.in_use for gate in workers) == 2)
        assert sum(gate.waiting for gate in workers) == 4
        assert await workers[0].status() == ModelStatus(is_ready=True, in_use=2, waiting=4)
        for n in range(6):
            await eventually(partial(order.__contains__, n))
            may_leave[n].set()
    assert order == list(range(6))
    assert [(gate.in_use, gate.waiting) for gate in workers] == [(0, 0), (0, 0)]


async def test_a_key_that_floods_from_all_workers_leaves_another_its_turn(path: Path) -> None:
    order: list[str] = []
    async with model(path, slots=1) as at, anyio.create_task_group() as group:
        workers = [worker(path), worker(path)]

        async def one(n: int, flow: str) -> None:
            async with hold(workers[n % 2], ask=SlotAsk(uuid.uuid4(), flow=flow, reserve=Reserve(tokens=100))):
                order.append(flow)

        async with hold(workers[0]):
            for n in range(20):
                group.start_soon(one, n, "flood")
            await eventually(lambda: at.slots.waiting == 20)
            for n in range(2):
                group.start_soon(one, n, "calm")
            await eventually(lambda: at.slots.waiting == 22)
    assert [place for place, flow in enumerate(order, 1) if flow == "calm"] == [2, 4]


async def test_a_weightier_key_gets_more_turns_and_a_long_request_counts_for_several(path: Path) -> None:
    order: list[str] = []
    async with model(path, slots=1) as at, anyio.create_task_group() as group:
        gate = worker(path)

        async def one(flow: str, weight: int, tokens: int) -> None:
            ask = SlotAsk(uuid.uuid4(), flow=flow, weight=weight, reserve=Reserve(tokens=tokens))
            async with hold(gate, ask=ask):
                order.append(flow)

        async with hold(gate):
            for flow, weight, tokens in (("a", 1, 300), ("b", 2, 300), ("c", 1, 100)):
                before = at.slots.waiting
                for _ in range(6):
                    group.start_soon(one, flow, weight, tokens)
                await eventually(partial(_wait, at, before + 6))
    served = Counter(order[:9])
    assert (served["a"], served["b"], served["c"]) == (2, 3, 4)


async def test_who_waits_is_told_their_place_and_nobody_else_one(path: Path) -> None:
    asks = [SlotAsk(uuid.uuid4(), flow="key") for _ in range(3)]
    async with model(path, slots=1, is_open=False) as at, anyio.create_task_group() as group:
        gate = worker(path)
        may_leave = [asyncio.Event() for _ in asks]

        async def one(n: int) -> None:
            async with hold(gate, ask=asks[n]):
                await may_leave[n].wait()

        async def places() -> list[int]:
            return [0 if ask.place is None else await ask.place() for ask in asks]

        for n in range(3):
            group.start_soon(one, n)
            await eventually(partial(_wait, at, n + 1))
        assert await places() == [1, 2, 3]
        at.slots.open()
        for n in range(3):
            await eventually(partial(_holds, asks[n]))
            assert await places() == [0] * (n + 1) + [place + 1 for place in range(2 - n)]
            # Many at once are answered as one.
            if n < 2:
                place = asks[2].place
                assert place is not None
                assert set(await asyncio.gather(*(place() for _ in range(50)))) == {2 - n}
            may_leave[n].set()
    assert [ask.place for ask in asks] == [None] * 3


async def test_limits_of_the_upstream_refuse_count_and_come_back(path: Path) -> None:
    desk = Desk("w-1")
    rate = matched(a_limit(scope="upstream", subject="local", meter="requests", window="minute", amount=2))
    tokens = matched(a_limit(scope="upstream", subject="local", meter="tokens", window="minute", amount=1000))
    steps = Steps(desk, NothingToSeed())

    def ask(spent: Spent = UNDO, tokens_of: int = 100) -> SlotAsk:
        return SlotAsk(uuid.uuid4(), reserve=Reserve(tokens=tokens_of), limits=(rate, tokens), spent=lambda: spent)

    async with model(path, slots=1) as at:
        gate = worker(path, queue_length=0, steps=steps)
        async with hold(gate, ask=ask(Spent(tokens=950))):
            # The queue is full: what this one took comes back.
            with pytest.raises(Overloaded):
                async with hold(gate, ask=ask()):
                    pass
        with pytest.raises(RateLimitExceeded, match="upstream-tokens-minute") as refused:
            async with hold(gate, ask=ask()):
                pass
        assert int(refused.value.headers["retry-after-ms"]) > 0
        async with hold(gate, ask=ask(Spent(tokens=0), tokens_of=50)):
            assert at.slots.in_use == 1
        with pytest.raises(RateLimitExceeded, match="upstream-requests-minute"):
            async with hold(gate, ask=ask(tokens_of=1)):
                pass
        # A request without limits is nobody's business but the slots'.
        async with hold(gate):
            pass
        await eventually(lambda: (at.slots.in_use, at.slots.waiting) == (0, 0))
    assert desk.holdings == {}


async def test_a_limit_of_the_local_upstream_is_judged_on_the_road(sqlite_url: str, tmp_path: Path) -> None:
    async with KeysApi.open(sqlite_url, tmp_path, models=LOCAL) as api:
        limit = {"scope": "upstream", "subject": "local", "meter": "tokens", "window": "minute", "amount": 1}
        assert (await api.call("POST", at="/api/limits", json=limit)).status_code == 201
        key = (await api.make())["key"]
        body = {"model": "tide", "messages": [{"role": "user", "content": "hi"}]}
        answer = await api.call("POST", at="/v1/chat/completions", by=key, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "upstream-tokens-minute" in answer.json()["error"]["message"]


async def test_cancelled_in_the_queue_it_gives_back_what_its_upstream_s_limits_counted(path: Path) -> None:
    desk = Desk("w-1")
    limits = (matched(a_limit(scope="upstream", subject="local", meter="concurrency", window=None, amount=2)),)
    async with model(path, slots=1) as at:
        gate = worker(path, steps=Steps(desk, NothingToSeed()))
        async with hold(gate, ask=SlotAsk(uuid.uuid4(), limits=limits)):
            for _ in range(5):
                async with anyio.create_task_group() as group:

                    async def wait() -> None:
                        async with hold(gate, ask=SlotAsk(uuid.uuid4(), limits=limits)):
                            pytest.fail("there was no slot")

                    group.start_soon(wait)
                    await eventually(lambda: at.slots.waiting == 1)
                    with pytest.raises(RateLimitExceeded, match="upstream-concurrency"):
                        async with hold(gate, ask=SlotAsk(uuid.uuid4(), limits=limits)):
                            pass
                    group.cancel_scope.cancel()
                await eventually(lambda: at.slots.waiting == 0)
    assert desk.holdings == {}


async def test_cancelled_in_the_queue_it_leaves_at_once(path: Path) -> None:
    async with model(path, slots=1) as at:
        gate = worker(path)
        async with hold(gate):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def wait() -> None:
                        async with hold(gate):
                            pytest.fail("there was no slot")

                    group.start_soon(wait)
                    await eventually(lambda: at.slots.waiting == 1)
                    scope.cancel()
            assert gate.waiting == 0
            await eventually(lambda: at.slots.waiting == 0)
            assert at.slots.in_use == 1
        await eventually(lambda: at.slots.in_use == 0)


async def test_a_full_queue_and_a_deadline_are_overloaded(path: Path) -> None:
    async with model(path, slots=1) as at, anyio.create_task_group() as group:
        gate = worker(path, queue_length=1)
        async with hold(gate):

            async def wait() -> None:
                async with hold(gate):
                    pass

            group.start_soon(wait)
            await eventually(lambda: at.slots.waiting == 1)
            with pytest.raises(Overloaded, match="is full") as full:
                async with hold(gate):
                    pass
            with pytest.raises(Overloaded, match=r"within 0\.01 s") as late:
                async with hold(worker(path), deadline_s=0.01):
                    pass
            assert {type(full.value), type(late.value)} == {Overloaded}
        await eventually(lambda: (at.slots.in_use, at.slots.waiting) == (0, 0))


async def test_with_no_queue_a_free_slot_is_still_had(path: Path) -> None:
    async with model(path, slots=1):
        gate = worker(path, queue_length=0)
        async with hold(gate):
            with pytest.raises(Overloaded, match="is full"):
                async with hold(gate):
                    pass


async def test_while_the_model_loads_one_waits_and_is_granted_when_it_answers(path: Path) -> None:
    async with model(path, is_open=False) as at:
        gate = worker(path)
        assert await gate.status() == ModelStatus(is_ready=False, in_use=0, waiting=0)
        with pytest.raises(Unavailable, match="still being loaded"):
            async with hold(gate, deadline_s=0.2):
                pass
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                async with hold(gate) as lease:
                    assert lease.base_url == at.relay.base_url

            group.start_soon(wait)
            await eventually(lambda: at.slots.waiting == 1)
            at.slots.open()


async def test_where_nothing_listens_it_is_unavailable(path: Path) -> None:
    gate = worker(path)
    assert await gate.status() is None
    for leave_file in (False, True):
        if leave_file:
            bind(path).close()
        with pytest.raises(Unavailable, match="is not running"):
            async with hold(gate):
                pass
    assert (gate.in_use, gate.waiting) == (0, 0)


async def test_who_waits_when_the_model_ends_is_told(path: Path) -> None:
    gate = worker(path)
    failed: list[Unavailable] = []

    async def wait() -> None:
        try:
            async with hold(gate):
                pass
        except Unavailable as error:
            failed.append(error)

    async with anyio.create_task_group() as group, model(path, is_open=False) as at:
        group.start_soon(wait)
        await eventually(lambda: at.slots.waiting == 1)
    assert len(failed) == 1


async def test_a_slot_is_granted_anew_only_when_the_engine_has_ended_the_call(path: Path) -> None:
    async with model(path, slots=1) as at, anyio.create_task_group() as group:
        gate = worker(path)
        at.engine.may_end.clear()
        async with hold(gate) as lease, call(lease) as reader:
            await reader.readuntil(b"[DONE]")
        await eventually(lambda: at.engine.hang_ups == 1)
        granted = asyncio.Event()

        async def next_one() -> None:
            async with hold(gate) as lease, call(lease) as reader:
                granted.set()
                await reader.readuntil(b"[DONE]")

        group.start_soon(next_one)
        await eventually(lambda: at.slots.waiting == 1)
        assert (at.engine.now, granted.is_set()) == (1, False)
        at.engine.may_end.set()
        await eventually(granted.is_set)
    assert at.engine.most == 1


async def test_the_socket_is_the_owners_alone_and_its_path_may_be_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    path = deep / SOCKET_NAME
    assert len(str(path)) > LONGEST_ADDRESS
    async with model(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with hold(worker(path)) as lease:
            assert lease.upstream == "local"
        assert [file.name for file in deep.iterdir()] == [SOCKET_NAME]


async def test_a_new_model_takes_the_place_of_one_that_is_still_ending(path: Path) -> None:
    async with model(path) as old, hold(worker(path)), model(path) as new, hold(worker(path)):
        assert (old.slots.in_use, new.slots.in_use) == (1, 1)
    # Both have ended: what is left of their socket is in nobody's way.
    async with model(path), hold(worker(path)):
        pass


def test_it_is_the_same_under_the_workers_own_event_loop(path: Path) -> None:
    """Under uvloop a reader that outlived its socket would end up with the next socket of that number."""

    async def main() -> None:
        async with model(path, slots=1) as at:
            gate = worker(path)
            for _ in range(50):
                async with hold(gate):
                    with anyio.move_on_after(0.002):
                        async with hold(gate):
                            pytest.fail("there was no slot")
                    status = await gate.status()
                    assert status is not None
                    assert status.in_use == 1
            await eventually(lambda: (at.slots.in_use, at.slots.waiting) == (0, 0))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_strangers_at_the_gate_are_shown_out(path: Path) -> None:
    async with model(path) as at:
        for line in (b"GET / HTTP/1.1\r\n", b'{"ask": "everything"}\n', b"x" * 5000, b""):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(line)
            if not line:
                writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert (at.slots.in_use, at.slots.waiting) == (0, 0)
