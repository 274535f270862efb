"""The response cache on a Redis that is slow or gone: a miss, never an error, and hits again when it is back."""

import pytest
from pydantic import SecretStr

from tests.support.caller import Reply, catalogue_of
from tests.support.door import Door
from tests.support.road import open_road
from tests.support.services import Service
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.settings.groups import RedisSettings


def said(reply: Reply) -> str | None:
    return reply.head.headers.get("x-tidegate-cache")


@pytest.mark.parametrize("how", ["held", "shut"])
async def test_a_redis_that_is_slow_or_gone_is_a_miss_and_never_an_error(
    how: str,
    upstream: ScriptedUpstream,
    redis_service: Service,
    redis_prefix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    catalogue = catalogue_of(
        {"plain": {"base_url": upstream.base_url}}, {"m": {"attempts": ["plain/m"], "cache": {"ttl_s": 600}}}
    )
    async with Door(redis_service.port) as door:
        redis = RedisSettings(url=SecretStr(f"redis://127.0.0.1:{door.port}/0"), key_prefix=redis_prefix)
        async with open_road(tmp_path_factory.mktemp("road"), catalogue, redis=redis) as road:

            async def asked(*, streamed: bool = True) -> str | None:
                reply = await road.caller.chat("asked", temperature=0, stream=streamed)
                assert reply.status == 200
                return said(reply)

            async def is_hit() -> bool:
                return await asked() == "hit"

            await eventually(is_hit, within_s=20)
            if how == "held":
                door.hold()
            else:
                await door.shut()
            assert [await asked(streamed=streamed) for streamed in (True, False, True)] == ["miss"] * 3
            door.release()
            if how == "shut":
                await door.open()
            await eventually(is_hit, within_s=20)
            # What relays to Redis is the test's own.
            await eventually(lambda: all("Door." in held for held in road.what_is_held()))
            entries = await road.caller.entries("asked")
            assert {entry["outcome"] for entry in entries} == {"completed"}
            assert {len(entry["attempts"]) for entry in entries if entry["cache"] == "miss"} == {1}
