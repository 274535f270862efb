"""The fixtures' own promises: a database and a key prefix of one's own, from whatever source there is."""

import redis.asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


async def test_every_test_has_an_empty_database(database_url: str) -> None:
    engine = create_async_engine(database_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE seen (n INTEGER)"))
        await connection.execute(text("INSERT INTO seen VALUES (1)"))
        assert (await connection.execute(text("SELECT count(*) FROM seen"))).scalar() == 1
    await engine.dispose()


async def test_another_test_does_not_see_its_tables(database_url: str) -> None:
    await test_every_test_has_an_empty_database(database_url)


async def test_redis_keys_stand_under_a_prefix_of_the_test(redis_url: str, redis_prefix: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        assert [key async for key in client.scan_iter(match=f"*{redis_prefix}*")] == []
        await client.set(f"{redis_prefix}:{{d}}:n", 1)
        assert [key async for key in client.scan_iter(match=f"*{redis_prefix}*")] == [
            f"{redis_prefix}:{{d}}:n".encode()
        ]
