"""How long an end may take, floor by floor: each waits longer than what it waits for."""

import math

from tidegate.settings import Settings

# What a request that was cut may take to settle: 1 s to close its upstream, 3 to count tokens, 5 for its last event.
SETTLE_S = 10
# What the lifespan's end may take: the journal, the engine.
LIFESPAN_END_S = 10
# How long a retiring worker keeps a connection that is idle, for the next request on it.
KEPT_IDLE_S = 5
_MARGIN_S = 3


def worker_bound_s(settings: Settings) -> int:
    """From a worker's signal to its end. gunicorn kills it after this."""
    return math.ceil(settings.server.linger_s + settings.server.drain_s) + SETTLE_S + LIFESPAN_END_S


def retiring_bound_s(settings: Settings) -> int:
    """From the word that a worker is replaced to its end. The arbiter kills it after this."""
    return math.ceil(KEPT_IDLE_S + settings.server.drain_s) + SETTLE_S + LIFESPAN_END_S + _MARGIN_S


def retired_bound_s(settings: Settings) -> int:
    """From the word that a generation is replaced to its end. The root stops it after this."""
    return retiring_bound_s(settings) + _MARGIN_S


def server_bound_s(settings: Settings) -> int:
    """From the server's signal to its end. The root kills it after this."""
    return worker_bound_s(settings) + _MARGIN_S
