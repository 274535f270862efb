"""What a request asks of the response cache: whether, for how long, and what makes two requests the same. Pure.

A cache is asked for by the header `X-Tidegate-Cache`, else by the model's `cache`. Only the answers of *repeatable*
requests are looked up and kept, unless the caller forces it: those that say `temperature` 0 or a `seed`, by which the
OpenAI API means that the same request is to have the same answer (as far as it can; no vendor promises more). A request
whose answer is not all there is to it is not repeatable: one that lets the vendor search or run tools of its own, or
has it store the answer.

The key is a digest of the body as it would go on: every top-level member by its bytes, in the order of their names, but
for the form of the answer (`stream`, `stream_options`) and whom it is for (`user`, `safety_identifier`); of what stands
behind the model's name; and of the headers that go on, but for those that trace. Bytes, not values: what only looks the
same is a miss, and nothing else is ever a hit.
"""

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from tidegate.auth.principal import Principal
from tidegate.errors import InvalidRequest
from tidegate.inference.joining import Flight, Flights
from tidegate.inference.kept_answers import AnswerKey, KeptAnswer
from tidegate.inference.replay import finish_reason_of
from tidegate.inference.wire import ChatCall
from tidegate.ledger.entry import Tokens
from tidegate.routing.catalogue import LONGEST_CACHE_S
from tidegate.routing.plan import Plan
from tidegate.upstream.provider import FORWARDED_HEADERS

CACHE_HEADER: Final = b"x-tidegate-cache"
_FORM: Final = re.compile(rb"([0-9]{1,5})([smh])(\s*,\s*force)?", re.IGNORECASE)
_SECONDS: Final = {b"s": 1, b"m": 60, b"h": 3600}
_NOT_IN_KEY: Final = frozenset({"stream", "stream_options", "user", "safety_identifier"})
_TRACING: Final = frozenset({b"traceparent", b"tracestate", b"x-request-id"})
_CALLERS_OWN_TOOLS: Final = ("function", "custom")
_NOTHING: Final = (b"", b"null")


class _Tool(msgspec.Struct):
    type: str


_tools = msgspec.json.Decoder(list[_Tool])


@dataclass(slots=True)
class Caching:
    """One request at the cache. `key` is None where its answer is neither looked up nor kept.

    `ttl_s` is how old an answer it takes may be, and how long its own is kept. `follow_s` is the longest that its plan
    may take. `flights` are its process', `flight` is the one it leads, `kept` its own answer, once that is known to be
    worth keeping.
    """

    ttl_s: int
    key: AnswerKey | None = None
    follow_s: float = 0.0
    flights: Flights[AnswerKey, KeptAnswer] | None = None
    flight: Flight[AnswerKey, KeptAnswer] | None = None
    kept: KeptAnswer | None = None

    def offer(self, body: bytes | None, choices: int, tokens: Tokens, cost: int | None) -> None:
        """Takes a whole answer of an upstream's (None: it could not be copied), and what it came to in nano-USD.

        What is worth keeping goes at once to those who wait for it, and to all who come before it is kept; what is not
        is for its caller alone.
        """
        if self.key is None:
            return
        finish_reason = None if body is None else finish_reason_of(body, choices)
        if body is not None and finish_reason is not None:
            output = tokens.output + tokens.reasoning
            self.kept = KeptAnswer(body, finish_reason, tokens.total - output, output, cost, time.time())
        if self.kept is not None and self.flight is None and self.flights is not None:
            flight, leads = self.flights.board(self.key)
            self.flight = flight if leads else None
        if self.flight is None:
            return
        if self.kept is not None:
            self.flight.land(self.kept)
        else:
            self.flight.disperse()


def caching_of(headers: Mapping[bytes, bytes], call: ChatCall, principal: Principal, plan: Plan) -> Caching | None:
    """What a request asks of the cache, None where nobody asked. `headers` are by their lower-case names.

    Raises `InvalidRequest` for a header that is not of the form.
    """
    written = headers.get(CACHE_HEADER)
    ttl_s = plan.model.cache_ttl_s
    is_forced = False
    if written is None:
        # The model's default is for what is repeatable; a caller who asked is told of a miss.
        if ttl_s is None or not is_repeatable(call):
            return None
    else:
        asked = _asked(written)
        if asked is None:
            return None
        ttl_s, is_forced = asked
        if not is_forced and not is_repeatable(call):
            return Caching(ttl_s)
    upstreams = [attempt.upstream for attempt in plan.attempts]
    follow_s = sum(upstream.queue.deadline_s + upstream.timeouts.total_s for upstream in upstreams)
    return Caching(ttl_s, AnswerKey(principal.workspace_id, _digest(headers, call, plan)), follow_s)


def is_repeatable(call: ChatCall) -> bool:
    """Whether the same request is meant to have the same answer, and its answer is all there is to it."""
    members = call.members
    temperature = bytes(members.get("temperature", b""))
    if (temperature in _NOTHING or float(temperature) != 0) and bytes(members.get("seed", b"")) in _NOTHING:
        return False
    if bytes(members.get("store", b"")) == b"true" or bytes(members.get("web_search_options", b"")) not in _NOTHING:
        return False
    tools = bytes(members.get("tools", b""))
    try:
        return tools in _NOTHING or all(tool.type in _CALLERS_OWN_TOOLS for tool in _tools.decode(tools))
    except msgspec.DecodeError:
        # A type that stands twice and is read in two ways.
        return False


def _asked(written: bytes) -> tuple[int, bool] | None:
    """Seconds, and whether it is forced; None for `off`."""
    value = written.strip()
    if value.lower() == b"off":
        return None
    form = _FORM.fullmatch(value)
    ttl_s = int(form[1]) * _SECONDS[form[2].lower()] if form else 0
    if form is None or not 1 <= ttl_s <= LONGEST_CACHE_S:
        raise InvalidRequest(
            'X-Tidegate-Cache must be a time from 1s to 24h such as "60s", "5m" or "1h", with ", force" behind it for '
            'requests that are not deterministic; or "off".',
            param="X-Tidegate-Cache",
        )
    return ttl_s, form[3] is not None


def _digest(headers: Mapping[bytes, bytes], call: ChatCall, plan: Plan) -> str:
    passed = set(FORWARDED_HEADERS)
    for attempt in plan.attempts:
        passed.update(name.encode() for name in attempt.upstream.forward_headers)
    said = (
        call.protocol,
        plan.name,
        [(attempt.upstream.name, attempt.upstream.base_url, attempt.model) for attempt in plan.attempts],
        [(name, headers[name]) for name in sorted(passed - _TRACING) if name in headers],
        [(name, bytes(raw)) for name, raw in sorted(call.members.items()) if name not in _NOT_IN_KEY],
    )
    # Lengths stand before texts in msgpack: no two sayings have one encoding.
    return hashlib.sha256(msgspec.msgpack.encode(said)).hexdigest()
