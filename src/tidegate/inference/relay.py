"""From the upstream to the client, as it comes. Three ways, by what each side does: streamed, whole, collected.

Before the first content nothing is sent, so a failure is still a true status and another attempt is possible. Whole
events pass byte for byte; a usage chunk that only the gateway asked for is withheld. A stream that ends without having
said so was truncated, and is never given a clean end.
"""

import contextlib
import time

import anyio

from tidegate.errors import UpstreamError
from tidegate.inference.attempt import LiveAttempt
from tidegate.inference.collect import Collector
from tidegate.inference.exchange import Exchange
from tidegate.inference.reading import Kind, read_completion, tokens_of
from tidegate.inference.refusal import read_bounded
from tidegate.inference.replay import StreamCopy
from tidegate.inference.settlement import header_value
from tidegate.inference.sse import EventSplitter
from tidegate.ledger.entry import Tokens
from tidegate.limits.values import nano_usd
from tidegate.telemetry.metrics.families import TOKEN_GAP
from tidegate.telemetry.metrics.series import Tally
from tidegate.upstream.echoed_key import without_key

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# An upstream that has said everything ends its body at once; its connection is worth no longer wait.
_END_WITHIN_S = 0.25
_LONGEST_MESSAGE = 2000
_BYTES_A_TOKEN = 4
# Openers are some hundred bytes. An upstream that sends more before any content has its stream opened all the same.
_MOST_HELD_BYTES = 256 * 1024


async def relay(live: LiveAttempt, exchange: Exchange) -> None:
    """Sends the client what the upstream answers, to its end. Raises `UpstreamError` where it is not what was asked."""
    try:
        if exchange.call.streamed:
            await _relay_stream(live, exchange)
        elif live.answer.is_event_stream:
            await _collect(live, exchange)
        else:
            await _relay_whole(live, exchange)
    finally:
        exchange.progress.finish_reason = live.reader.finish_reason


async def _relay_stream(live: LiveAttempt, exchange: Exchange) -> None:
    client, reader, deadlines = exchange.client, live.reader, live.deadlines
    timeouts = live.planned.upstream.timeouts
    _expect_event_stream(live)
    deadlines.expect("first_token", timeouts.first_token_s)
    splitter = EventSplitter(live.planned.upstream.name)
    caching = exchange.caching
    copy = None if caching is None or caching.key is None else StreamCopy(live.planned.upstream.name)
    chunks = aiter(live.answer)
    gaps = exchange.progress.gaps = Tally(TOKEN_GAP.bounds)
    deltas, held = 0, b""
    async for data in chunks:
        ready = b""
        for event in splitter.feed(data):
            kind = reader.read(event)
            if copy is not None:
                copy.add(event)
            if not client.has_content and (kind is Kind.CONTENT or len(held) > _MOST_HELD_BYTES):
                _note_first_content(live, exchange)
            if kind is Kind.USAGE and live.withholds_usage:
                continue
            if kind is Kind.ERROR:
                if client.has_content and (held or ready):
                    # Content that came in one piece with the error is told all the same.
                    await client.send_events(held + ready)
                raise _stream_error(live)
            ready += event
        if reader.deltas != deltas:
            deltas = reader.deltas
            gaps.mark(time.perf_counter())
        if not client.has_content and not reader.done:
            held += ready
            continue
        deadlines.relax()
        if reader.done:
            _name_upstream(live, exchange)
            _offer(live, exchange, copy)
            await client.end_events(held + ready)
            break
        if held or ready:
            await client.send_events(held + ready)
            held = b""
        live.note_output()
        deadlines.expect("idle", timeouts.idle_s)
    else:
        if not reader.complete:
            raise _truncated(live)
        _name_upstream(live, exchange)
        deadlines.relax()
        _offer(live, exchange, copy)
        await client.end_events(held)
        return
    # The client has everything: an upstream that breaks off now only costs its connection.
    deadlines.end()
    with anyio.move_on_after(_END_WITHIN_S), contextlib.suppress(UpstreamError):
        async for _ in chunks:
            pass


async def _collect(live: LiveAttempt, exchange: Exchange) -> None:
    """A caller that did not ask to stream, an upstream that always does."""
    reader = live.reader
    splitter = EventSplitter(live.planned.upstream.name)
    collector = Collector(live.planned.upstream.name)
    size = 0
    async for data in live.answer:
        size += len(data)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamError(
                f"The upstream {live.planned.upstream.name!r} sent more than {MAX_ANSWER_BYTES} bytes.",
                upstream=live.planned.upstream.name,
            )
        for event in splitter.feed(data):
            kind = reader.read(event)
            if kind is Kind.ERROR:
                raise _stream_error(live)
            if kind is Kind.CONTENT and exchange.progress.ttft_s is None:
                exchange.progress.ttft_s = exchange.elapsed_s()
            collector.add(event)
        live.note_output()
        if reader.done:
            break
    if not reader.complete:
        raise _truncated(live)
    _name_upstream(live, exchange)
    body = collector.body()
    _offer(live, exchange, body)
    await exchange.client.send_answer(200, body)


async def _relay_whole(live: LiveAttempt, exchange: Exchange) -> None:
    name = live.planned.upstream.name
    body = await read_bounded(live.answer, name, MAX_ANSWER_BYTES)
    completion = read_completion(body)
    if live.span is not None:
        live.span.says = body
    if completion is None:
        raise UpstreamError(f"The upstream {name!r} answered with something that is no chat completion.", upstream=name)
    if completion.usage is not None:
        live.reader.tokens = tokens_of(completion.usage)
    else:
        live.reader.keep(completion.texts())
    if completion.choices:
        live.reader.finish_reason = completion.choices[0].finish_reason
    exchange.progress.ttft_s = exchange.elapsed_s()
    _name_upstream(live, exchange)
    _offer(live, exchange, body)
    await exchange.client.send_answer(200, body)


def _expect_event_stream(live: LiveAttempt) -> None:
    if not live.answer.is_event_stream:
        name = live.planned.upstream.name
        raise UpstreamError(f"The upstream {name!r} was asked to stream and answered with no stream.", upstream=name)


def _offer(live: LiveAttempt, exchange: Exchange, said: bytes | StreamCopy | None) -> None:
    """Shows the cache a whole answer, and what it came to: by the upstream's figures, else by its size."""
    caching = exchange.caching
    if caching is None or caching.key is None:
        return
    reader, price = live.reader, live.planned.price
    tokens = reader.tokens
    if tokens is None:
        output = max(reader.deltas, len(reader.text()) // _BYTES_A_TOKEN)
        tokens = Tokens(input=exchange.call.input_bytes // _BYTES_A_TOKEN, output=output)
    body = said.body() if isinstance(said, StreamCopy) else said
    cost = None if price is None else nano_usd(price.cost(tokens))
    caching.offer(body, exchange.call.choices, tokens, cost)


def _note_first_content(live: LiveAttempt, exchange: Exchange) -> None:
    exchange.client.has_content = True
    exchange.progress.ttft_s = exchange.elapsed_s()
    _name_upstream(live, exchange)


def _name_upstream(live: LiveAttempt, exchange: Exchange) -> None:
    """Who answers, in the headers; where they are not sent yet, and once."""
    if live.is_named or exchange.client.is_open:
        return
    live.is_named = True
    headers = exchange.client.headers
    headers.append((b"x-tidegate-upstream", live.planned.upstream.name.encode()))
    for name, value in live.answer.passed_headers.items():
        headers.append((name.lower().encode(), header_value(value)))


def _stream_error(live: LiveAttempt) -> UpstreamError:
    error = live.reader.error
    said = error.get("message") if isinstance(error, dict) else error
    name = live.planned.upstream.name
    message = f"The upstream {name!r} failed while it answered"
    told = without_key(str(said), live.key_sent)[:_LONGEST_MESSAGE]
    return UpstreamError(f"{message}: {told}" if said else f"{message}.", upstream=name)


def _truncated(live: LiveAttempt) -> UpstreamError:
    name = live.planned.upstream.name
    return UpstreamError(f"The upstream {name!r} ended its answer before it was complete.", upstream=name)
