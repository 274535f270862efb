"""What a process that serves tells of itself: true of its own objects and stores, and without a secret."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.caller import catalogue_of
from tests.support.road import Road, open_road
from tests.support.server import UPSTREAM_KEY
from tidegate.settings.groups import RedisSettings
from tidegate.upstream.openai import OpenAIProvider, open_client


@pytest.fixture
async def road(tmp_path: Path, redis_url: str, redis_prefix: str) -> AsyncIterator[Road]:
    one = {"base_url": "http://127.0.0.1:9/v1", "max_concurrency": 3, "queue": {"length": 7, "deadline_s": 2}}
    upstreams = {"one": one, "echo": {"provider": "echo"}}
    attempts = {"m": ["one/m"], "both": ["echo/m", "one/m"], "any/*": ["echo/m"], "free": ["echo/m"]}
    models = {name: {"attempts": tried} for name, tried in attempts.items()}
    catalogue = catalogue_of(upstreams, models)
    redis = RedisSettings.model_validate({"url": redis_url, "key_prefix": redis_prefix})
    async with open_road(tmp_path, catalogue, redis=redis) as opened:
        yield opened


async def facts(road: Road, request_id: str | None = None) -> dict[str, Any]:
    async with asyncio.timeout(20):
        return await road.root.process.facts(request_id)


async def test_a_process_tells_what_is_so_and_no_secret(road: Road) -> None:
    told = await facts(road)
    text = orjson.dumps(told).decode()
    secrets = [secret.decode() for _, secret in road.state["keyrings"].jwt.items()]
    secrets += [secret.decode() for _, secret in road.state["keyrings"].peppers.items()]
    for secret in (*secrets, UPSTREAM_KEY, road.settings.database_url):
        assert secret not in text
    assert told["database"]["driver"] == "aiosqlite"
    assert (told["database"]["missing"], told["database"]["newer"]) == ([], None)
    assert told["redis"]["run_id"] == told["limiter"]["run_id"] is not None
    assert abs(told["redis"]["clock_ahead_s"]) < 1
    assert (told["limiter"]["shared"], told["limiter"]["is_away"]) == (True, False)
    assert told["caches"] == {"reports_in_redis": True, "answers_in_redis": True}
    upstream = told["upstreams"]["one"]
    assert (upstream["slots"], upstream["queue_length"], upstream["queue_deadline_s"]) == (3, 7, 2)
    assert told["free_models"] == ["free"]
    assert told["client"] == {"clients": 1, "providers": 1, "is_pooled": True, "is_closed": False}
    assert told["tokens"]["access_token_s"] == road.settings.auth.access_token_minutes * 60


async def test_a_second_client_is_counted(road: Road) -> None:
    async with open_client() as another:
        serving = road.gateway.serving
        providers = {**serving.providers, "two": OpenAIProvider(another)}
        object.__setattr__(serving, "providers", providers)
        assert (await facts(road))["client"]["clients"] == 2


async def test_a_database_that_is_gone_is_a_fact_and_not_an_error(road: Road) -> None:
    file = road.settings.data_dir / "tidegate.db"
    elsewhere = file.rename(file.with_name("elsewhere"))
    file.mkdir()
    try:
        await road.state["database"].engine.dispose()
        told = await facts(road, str(uuid.uuid4()))
        assert told["database"]["error"] == "Unavailable"
        assert told["ledger"] == {"error": "Unavailable"}
    finally:
        file.rmdir()
        elsewhere.rename(file)
