"""The local model's process under the root: started again when it dies, never the server's end once that is ready."""

import signal
from pathlib import Path
from typing import Any

from tests.support.serve_parts import MADE
from tests.support.server import GatewayPlan
from tests.support.stand_in import LOCAL, StandIn, kill, not_started, refusal
from tests.support.waiting import eventually


def plan(**fields: Any) -> GatewayPlan:
    return GatewayPlan(catalogue=LOCAL, **fields)


async def test_a_model_that_dies_is_started_again(tmp_path: Path) -> None:
    async with StandIn(tmp_path, plan()) as gateway:
        first = await gateway.one_titled("model")
        await eventually(lambda: str(first.pid) in gateway.noted("model-starts"), within_s=20)
        kill(first.pid)
        second = await gateway.one_titled("model", other_than=first.pid)
        await eventually(lambda: str(second.pid) in gateway.noted("model-starts"), within_s=20)
        kill(second.pid)
        third = await gateway.one_titled("model", other_than=second.pid)
        assert gateway.noted("model-starts") == [str(each.pid) for each in (first, second, third)]
        deaths = [line for line in gateway.lines() if line["event"] == "the local model ended"]
        assert [line["starts_again_in_s"] for line in deaths] == [0.05, 0.1]
        assert [line["ending"] for line in deaths] == ["SIGKILL"] * 2
        assert (await gateway.get("/who"))[0] == 200


async def test_a_model_that_cannot_start_refuses_the_start_with_its_own_line(tmp_path: Path) -> None:
    async with not_started(StandIn(tmp_path, plan())) as gateway:
        gateway.tell("unready")
        gateway.tell("model-code", "78")
        assert await refusal(gateway) == ["the model's wheels are missing"]
        assert len(gateway.noted("model-starts")) == 1


async def test_a_start_that_the_model_refuses_still_shows_the_password_that_was_made(tmp_path: Path) -> None:
    async with not_started(StandIn(tmp_path, plan(environment="development"))) as gateway:
        gateway.tell("unready")
        gateway.tell("model-code", "78")
        assert await refusal(gateway) == ["the model's wheels are missing"]
        assert gateway.output("stdout").count(MADE["admin_password"]) == 1
        assert "is ready" not in gateway.output()


async def test_a_model_that_crashes_at_first_is_tried_again_and_the_start_goes_on(tmp_path: Path) -> None:
    async with not_started(StandIn(tmp_path, plan())) as gateway:
        gateway.tell("model-code", "3")
        await gateway.start()
        assert await eventually(lambda: len(gateway.noted("model-starts")) >= 3)
        (gateway.data_dir / "model-code").unlink()
        await gateway.one_titled("model")
        assert await gateway.stop() == 0


async def test_a_model_that_cannot_start_again_leaves_the_server_running(tmp_path: Path) -> None:
    async with StandIn(tmp_path, plan()) as gateway:
        first = await gateway.one_titled("model")
        await eventually(lambda: any(line["event"] == "ready" for line in gateway.lines()))
        gateway.tell("model-code", "78")
        kill(first.pid)
        await eventually(lambda: len(gateway.noted("model-starts")) >= 3)
        assert (await gateway.get("/who"))[0] == 200


async def test_the_model_ends_after_the_server_and_before_the_root(tmp_path: Path) -> None:
    async with not_started(StandIn(tmp_path, plan())) as gateway:
        gateway.tell("model-notes-its-end")
        await gateway.start()
        await gateway.one_titled("model")
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        assert gateway.noted("ends") == ["lifespan ended", "model ended"]
        await gateway.assert_nothing_left()


async def test_no_model_runs_where_no_upstream_is_local(tmp_path: Path) -> None:
    async with StandIn(tmp_path, GatewayPlan(catalogue=LOCAL.replace('"local"', '"echo"'))) as gateway:
        assert gateway.noted("model-starts") == []
        assert gateway.titled("model") == []
