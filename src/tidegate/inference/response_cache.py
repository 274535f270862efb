"""The cache's step of the road: an answer that is there, an answer that somebody is getting, or one's own to get.

Whoever has to get the answer itself gets it as if there were no cache: what it brings is offered to the cache on the
way (`relay.py`), and kept when its turn ends, behind the upstream's slot. A cache that cannot be asked is a miss.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

import anyio

from tidegate.errors import RequestTimeout
from tidegate.inference.caching import CACHE_HEADER, Caching
from tidegate.inference.exchange import Exchange
from tidegate.inference.joining import Flight, Flights, Part
from tidegate.inference.kept_answers import AnswerKey, KeptAnswer, KeptAnswers, RedisAnswers
from tidegate.inference.replay import stream_of


class ResponseCache:
    """One process's way to the answers that are kept, and its requests that are joined. `clock` is Unix time.

    >>> async with cache.turn(exchange, caching) as kept:
    ...     await replay(kept, exchange) if kept is not None else await get_it()
    """

    def __init__(self, answers: KeptAnswers, *, clock: Callable[[], float] = time.time) -> None:
        self.flights: Flights[AnswerKey, KeptAnswer] = Flights()
        self._answers = answers
        self._clock = clock

    @property
    def is_shared(self) -> bool:
        """Whether answers are kept where every worker finds them."""
        return isinstance(self._answers, RedisAnswers)

    @asynccontextmanager
    async def turn(self, exchange: Exchange, caching: Caching) -> AsyncIterator[KeptAnswer | None]:
        """The answer that the request is to be given; None where it has to get one itself.

        Raises `RequestTimeout` where the caller's deadline passed while it waited for another's answer.
        """
        # Nothing is awaited between its return and the `try`: who leads leaves.
        answer = await self._joined(exchange, caching)
        try:
            if answer is None:
                answer = await self._found(caching)
            _tell(exchange, "miss" if answer is None else "hit")
            yield answer
        finally:
            try:
                await self._keep(caching)
            finally:
                if caching.flight is not None:
                    caching.flight.leave()

    async def _joined(self, exchange: Exchange, caching: Caching) -> KeptAnswer | None:
        """Another's answer, where the same is asked for just now or was until now. None to go on, maybe as a leader."""
        if caching.key is None:
            return None
        caching.flights = self.flights
        landed = self.flights.landed(caching.key)
        if landed is not None or exchange.call.streamed:
            return self._fresh(landed, caching)
        flight, leads = self.flights.board(caching.key)
        part = Part.LEADS if leads else await _followed(flight, exchange, caching)
        if part is Part.LEADS:
            caching.flight = flight
        if not isinstance(part, KeptAnswer):
            return None
        answer = self._fresh(part, caching)
        if answer is not None:
            exchange.progress.units["joined"] = 1
        return answer

    def _fresh(self, answer: KeptAnswer | None, caching: Caching) -> KeptAnswer | None:
        """Another's answer, unless it is older than is asked for: it was kept, or its leader was slow to leave."""
        return answer if answer is not None and answer.is_fresh(caching.ttl_s, self._clock()) else None

    async def _found(self, caching: Caching) -> KeptAnswer | None:
        if caching.key is None:
            return None
        answer = await self._answers.find(caching.key, caching.ttl_s)
        if answer is not None and caching.flight is not None:
            caching.flight.land(answer)
        return answer

    async def _keep(self, caching: Caching) -> None:
        if caching.key is None or caching.kept is None:
            return
        # It was paid for, also where its client is gone; the store bounds it.
        with anyio.CancelScope(shield=True):
            await self._answers.keep(caching.key, caching.kept, caching.ttl_s)


async def _followed(flight: Flight[AnswerKey, KeptAnswer], exchange: Exchange, caching: Caching) -> KeptAnswer | Part:
    """What becomes of waiting: for at most what the leader's plan may take, under the caller's own deadline."""
    remaining_s = exchange.remaining_s()
    try:
        return await flight.follow(caching.follow_s if remaining_s is None else min(remaining_s, caching.follow_s))
    except TimeoutError:
        if remaining_s is None or remaining_s > caching.follow_s:
            return Part.ALONE
        raise RequestTimeout("The deadline that X-Tidegate-Deadline-Ms set has passed.") from None


async def replay(answer: KeptAnswer, exchange: Exchange) -> None:
    """Sends a kept answer in the form that is asked for, and notes what it saved."""
    client, progress = exchange.client, exchange.progress
    progress.units |= {"saved_input_tokens": answer.input_tokens, "saved_output_tokens": answer.output_tokens}
    if answer.cost is not None:
        progress.units["saved_cost"] = answer.cost
    progress.finish_reason = answer.finish_reason
    progress.ttft_s = exchange.elapsed_s()
    if not exchange.call.streamed:
        await client.send_answer(200, answer.body)
        return
    events = stream_of(answer.body, wants_usage=exchange.call.wants_usage)
    client.has_content = True
    await client.end_events(events)


def _tell(exchange: Exchange, said: Literal["hit", "miss"]) -> None:
    exchange.progress.cache = said
    exchange.client.headers.append((CACHE_HEADER, said.encode()))
