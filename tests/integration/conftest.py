"""What several files of the gate's stores stand on: both stores side by side."""

from collections.abc import Iterator

import pytest
import redis

from tests.support.gate_stores import TwinStores


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def stores(client: "redis.Redis", redis_prefix: str) -> Iterator[TwinStores]:
    stores = TwinStores(client, redis_prefix)
    try:
        yield stores
    finally:
        stores.close()
