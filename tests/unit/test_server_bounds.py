"""Each floor of the server's end waits longer than what it waits for."""

import math

import pytest

from tidegate.server.bounds import (
    KEPT_IDLE_S,
    LIFESPAN_END_S,
    SETTLE_S,
    retired_bound_s,
    retiring_bound_s,
    server_bound_s,
    worker_bound_s,
)
from tidegate.server.http_server import uvicorn_config
from tidegate.settings import Settings
from tidegate.settings.groups import ServerSettings

# To close the upstream, to count its tokens, to send the last event.
CUT_REQUEST_S = 1 + 3 + 5


@pytest.mark.parametrize(("drain_s", "linger_s"), [(0.1, 0), (30, 0), (2.5, 1.5), (600, 20)])
def test_each_bound_is_longer_than_what_it_waits_for(drain_s: float, linger_s: float) -> None:
    settings = Settings(environment="test", server=ServerSettings(drain_s=drain_s, linger_s=linger_s))

    async def app(*_: object) -> None: ...

    assert SETTLE_S >= CUT_REQUEST_S
    net_s = uvicorn_config(app, settings).timeout_graceful_shutdown
    assert net_s is not None
    assert drain_s + SETTLE_S < net_s
    assert net_s <= math.ceil(drain_s) + SETTLE_S + LIFESPAN_END_S
    assert worker_bound_s(settings) >= linger_s + drain_s + SETTLE_S + LIFESPAN_END_S
    assert server_bound_s(settings) > worker_bound_s(settings)
    assert retiring_bound_s(settings) > KEPT_IDLE_S + drain_s + SETTLE_S + LIFESPAN_END_S
    assert retired_bound_s(settings) > retiring_bound_s(settings)
