from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.server.pools import LEAST, Pool, pool_for, worker_count
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings
from tidegate.settings.groups import DatabaseSettings, ServerSettings


def replicas(number: int) -> Settings:
    return Settings.model_construct(database=DatabaseSettings(max_replicas=number))


@pytest.mark.parametrize(
    ("number", "workers", "max_connections", "expected"),
    [
        (1, 1, 100, Pool(5, 5)),
        (1, 4, 83, Pool(5, 5)),
        (1, 5, 83, Pool(5, 3)),
        (1, 5, 53, Pool(5, 0)),
        (2, 5, 83, Pool(4, 0)),
        (1, 5, 23, Pool(2, 0)),
    ],
)
def test_the_pool_is_the_largest_that_fits(number: int, workers: int, max_connections: int, expected: Pool) -> None:
    assert pool_for(replicas(number), workers=workers, max_connections=max_connections, reserved=3) == expected


@given(
    number=st.integers(1, 200),
    workers=st.integers(1, 129),
    max_connections=st.integers(1, 10_000),
    reserved=st.integers(0, 20),
)
def test_a_pool_keeps_the_sum_or_is_refused(number: int, workers: int, max_connections: int, reserved: int) -> None:
    left = max_connections - reserved
    try:
        pool = pool_for(replicas(number), workers=workers, max_connections=max_connections, reserved=reserved)
    except StartRefused:
        assert number * workers * LEAST * 2 > left
    else:
        assert number * workers * (pool.size + pool.overflow) * 2 <= left
        assert 1 <= pool.size <= 5
        assert 0 <= pool.overflow <= 5


def test_an_impossible_sum_names_its_numbers_and_what_to_change() -> None:
    with pytest.raises(StartRefused) as refused:
        pool_for(replicas(3), workers=9, max_connections=100, reserved=3)
    (fault,) = refused.value.faults
    assert "100 (max_connections) - 3 (reserved)" in fault
    assert "3 x 9 workers" in fault
    assert "max_connections to 111 or more" in fault
    assert "TIDEGATE_SERVER__WORKERS" in fault
    assert "TIDEGATE_DATABASE__MAX_REPLICAS" in fault
    assert pool_for(replicas(3), workers=9, max_connections=111, reserved=3) == Pool(2, 0)


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
