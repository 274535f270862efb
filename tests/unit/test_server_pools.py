from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.server.pools import (
    BESIDE_REDIS_POOL,
    LEAST,
    LEAST_REDIS,
    RESERVED_REDIS,
    database_share,
    pooled_share,
    redis_share,
    split,
    worker_count,
)
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings
from tidegate.settings.groups import DatabaseSettings, ServerSettings


def replicas(number: int) -> Settings:
    return Settings.model_construct(database=DatabaseSettings(max_replicas=number))


@pytest.mark.parametrize(
    ("number", "workers", "max_connections", "expected"),
    [
        (1, 1, 100, (5, 5)),
        (1, 4, 83, (5, 5)),
        (1, 5, 83, (5, 3)),
        (1, 5, 53, (5, 0)),
        (2, 5, 83, (4, 0)),
        (1, 5, 23, (2, 0)),
    ],
)
def test_the_pool_is_the_largest_that_fits(
    number: int, workers: int, max_connections: int, expected: tuple[int, int]
) -> None:
    share = database_share(replicas(number), workers=workers, max_connections=max_connections, reserved=3)
    assert split(share.connections) == expected


@given(
    number=st.integers(1, 200),
    workers=st.integers(1, 129),
    max_connections=st.integers(1, 10_000),
    reserved=st.integers(0, 20),
)
def test_a_pool_keeps_the_sum_or_is_refused(number: int, workers: int, max_connections: int, reserved: int) -> None:
    left = max_connections - reserved
    try:
        share = database_share(replicas(number), workers=workers, max_connections=max_connections, reserved=reserved)
    except StartRefused:
        assert number * workers * LEAST * 2 > left
    else:
        size, overflow = split(share.connections)
        assert number * workers * (size + overflow) * 2 <= left
        assert 1 <= size <= 5
        assert 0 <= overflow <= 5
        assert f"= {number * workers * share.connections * 2} of {max_connections} " in share.arithmetic


@given(number=st.integers(1, 200), workers=st.integers(1, 129), max_clients=st.integers(1, 60_000))
def test_a_pool_of_redis_keeps_the_sum_or_is_refused(number: int, workers: int, max_clients: int) -> None:
    left = max_clients - RESERVED_REDIS
    try:
        share = redis_share(replicas(number), workers=workers, max_clients=max_clients)
    except StartRefused as refused:
        assert number * workers * (BESIDE_REDIS_POOL + LEAST_REDIS) * 2 > left
        (fault,) = refused.faults
        enough = int(fault.partition("raise maxclients to ")[2].split()[0])
        assert redis_share(replicas(number), workers=workers, max_clients=enough).connections == LEAST_REDIS
    else:
        assert number * workers * (BESIDE_REDIS_POOL + share.connections) * 2 <= left
        assert LEAST_REDIS <= share.connections <= 16


def test_an_impossible_sum_names_its_numbers_and_what_to_change() -> None:
    with pytest.raises(StartRefused) as refused:
        database_share(replicas(3), workers=9, max_connections=100, reserved=3)
    (fault,) = refused.value.faults
    assert "100 (max_connections) - 3 (reserved)" in fault
    assert "3 x 9 workers" in fault
    assert "max_connections to 111 or more" in fault
    assert "TIDEGATE_SERVER__WORKERS" in fault
    assert "TIDEGATE_DATABASE__MAX_REPLICAS" in fault
    assert database_share(replicas(3), workers=9, max_connections=111, reserved=3).connections == 2


def test_the_arithmetic_is_told_whole() -> None:
    told = database_share(replicas(2), workers=3, max_connections=100, reserved=3).arithmetic
    assert told == "2 replicas x 3 workers x (5 + 3) x 2 = 96 of 100 (max_connections) - 3 (reserved)"
    told = redis_share(replicas(2), workers=3, max_clients=250).arithmetic
    assert told == "2 replicas x 3 workers x (14 + 6) x 2 = 240 of 250 (maxclients) - 8 (for commands)"
    told = pooled_share(replicas(2), workers=3).arithmetic
    assert told == "2 replicas x 3 workers x (5 + 5) x 2 = 120 to the pooler, whose max_client_conn must allow it"


@pytest.mark.parametrize(
    ("environment", "workers", "cpus", "expected"),
    [
        ("production", "auto", 1, 3),
        ("production", "auto", 4, 9),
        ("production", 2, 4, 2),
        ("development", "auto", 4, 1),
        ("development", 3, 4, 3),
        ("test", "auto", 4, 1),
    ],
)
def test_auto_is_two_a_cpu_and_one_in_production_alone(
    environment: Literal["development", "test", "production"],
    workers: Literal["auto"] | int,
    cpus: int,
    expected: int,
) -> None:
    settings = Settings.model_construct(environment=environment, server=ServerSettings(workers=workers))
    assert worker_count(settings, cpus) == expected
