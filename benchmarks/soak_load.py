"""The soak's load: streams that end or are hung up, and everything that a gateway is asked beside them.

Whole answers, cached ones, refusals by key, model, body, rate and budget, requests that nobody waits for, pages of the
ledger: each kind has the statuses that it may be answered with, and any other is a fault. What may make a gateway
remember too much is always new: labels, end users, keys that do not exist.
"""

import asyncio
import itertools
import random
import string
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from benchmarks.client import BadAnswer, Connection, Target

TOKENS = (4, 8, 16, 30)
GAP_MS = 500
STREAMED_MODELS = tuple(f"stream-{tokens}-{GAP_MS}" for tokens in TOKENS)
"""In the names by which the benchmark's upstream knows what to do."""
_HANG_UPS = 0.15
_SHORT_ASKERS = 12
_PAUSE_S = 0.5
_QUESTIONS = 50
_LONGEST_SILENCE_S = 2.0
_CHARACTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Keys:
    """One without limits; one that may ask a few times a minute; one whose money is soon spent."""

    free: str
    rated: str
    budgeted: str


class SoakLoad:
    """`streams` at any moment, until `end`. `counts` says what was asked and how it ended."""

    def __init__(self, host: str, port: int, keys: Keys, *, streams: int, seed: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._target = Target(host, port)
        self._keys = keys
        self._streams = streams
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._kinds: dict[str, Callable[[], Awaitable[int]]] = {
            "whole": lambda: self._ask(self._by(self._keys.free)),
            "cached": self._ask_cached,
            "unknown key": lambda: self._ask(self._by(self._new_key())),
            "unknown model": lambda: self._ask(self._by(self._keys.free), model=f"no-such-{self._new_label()}"),
            "broken body": lambda: self._answered(self._by(self._keys.free), b"POST", b"/v1/chat/completions", b"{"),
            "rated": lambda: self._ask(self._by(self._keys.rated)),
            "budgeted": lambda: self._ask(self._by(self._keys.budgeted)),
            "unawaited": self._ask_in_vain,
            "models": lambda: self._answered(self._by(self._keys.free), b"GET", b"/v1/models"),
            "entries": lambda: self._answered(self._by(self._keys.free), b"GET", b"/api/requests?limit=5"),
            "health": lambda: self._answered(self._target, b"GET", b"/health/ready"),
        }

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    @property
    def answered(self) -> int:
        """Whole answers to requests that have an entry."""
        kinds = ("whole", "cached", "rated", "budgeted")
        return self.counts["stream: whole"] + sum(self.counts[f"{kind}: 200"] for kind in kinds)

    def begin(self) -> None:
        for n in range(self._streams):
            # Spread over the first seconds: all at once is another test.
            self._tasks.append(asyncio.create_task(self._stream_on(after_s=5 * n / self._streams)))
        self._tasks += [asyncio.create_task(self._ask_on()) for _ in range(_SHORT_ASKERS)]

    async def end(self) -> None:
        """Returns when the last answer has come."""
        self._over.set()
        await asyncio.gather(*self._tasks)

    async def passes(self, seconds: float) -> None:
        """So much time, less where the load ends."""
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return

    async def _stream_on(self, *, after_s: float) -> None:
        await self.passes(after_s)
        while not self._over.is_set():
            tokens = self._random.choice(TOKENS)
            try:
                if self._random.random() < _HANG_UPS:
                    await self._hang_up(f"stream-{tokens}-{GAP_MS}", stream=True, after_s=tokens * GAP_MS / 1000)
                    self.counts["stream: hung up"] += 1
                else:
                    await self._stream(tokens)
            except (BadAnswer, OSError, TimeoutError) as error:
                self.faults.append(f"a stream of {tokens} tokens: {error!r}")
                await self.passes(_PAUSE_S)

    async def _stream(self, tokens: int) -> None:
        target = self._by(self._keys.free)
        request = target.request(f"stream-{tokens}-{GAP_MS}", stream=True, label=self._new_label())
        connection = await Connection.open(target)
        try:
            answer = await connection.ask(request)
        finally:
            connection.transport.abort()
        if answer.chunks == tokens:
            self.counts["stream: whole"] += 1
        else:
            self.faults.append(f"a stream of {tokens} tokens had {answer.chunks}")

    async def _ask_on(self) -> None:
        allowed = {"unknown model": {404}, "broken body": {400}, "unawaited": {0}}
        allowed |= {"rated": {200, 429}, "budgeted": {200, 429}}
        # Each new key is asked of the database, which a busy machine may keep from answering within its second.
        allowed["unknown key"] = {401, 503}
        while not self._over.is_set():
            kind = self._random.choice(tuple(self._kinds))
            try:
                status = await self._kinds[kind]()
            except (OSError, TimeoutError) as error:
                self.faults.append(f"{kind}: {error!r}")
            else:
                self.counts[f"{kind}: {status or 'hung up'}"] += 1
                if status not in allowed.get(kind, {200}):
                    self.faults.append(f"{kind}: {status}")
            await self.passes(self._random.uniform(0.5, 1.5) * _PAUSE_S)

    async def _ask_cached(self) -> int:
        target = self._by(self._keys.free, ("x-tidegate-cache", "30s, force"))
        return await self._ask(target, content=f"Question {self._random.randrange(_QUESTIONS)}")

    async def _ask_in_vain(self) -> int:
        await self._hang_up("silent", stream=False, after_s=_LONGEST_SILENCE_S)
        return 0

    async def _hang_up(self, model: str, *, stream: bool, after_s: float) -> None:
        """Whenever: before the first byte, in the middle, at the end."""
        target = self._by(self._keys.free)
        connection = await Connection.open(target)
        connection.send(target.request(model, stream=stream, label=self._new_label()))
        await self.passes(self._random.uniform(0, after_s))
        if connection.is_open:
            connection.hang_up()

    async def _ask(self, target: Target, *, model: str = "small", content: str = "Say hello.") -> int:
        return await self._status(target, target.request(model, stream=False, content=content, label=self._new_label()))

    async def _answered(self, target: Target, method: bytes, path: bytes, body: bytes = b"") -> int:
        lines = [f"{name}: {value}".encode() for name, value in (("host", "gateway"), *target.headers)]
        lines.append(b"content-length: %d" % len(body))
        return await self._status(target, b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), *lines, b"", body]))

    async def _status(self, target: Target, request: bytes) -> int:
        connection = await Connection.open(target)
        try:
            await connection.ask(request)
        except BadAnswer as answered:
            status = str(answered).partition(":")[0]
            return int(status) if status.isdigit() else 0
        finally:
            connection.transport.abort()
        return 200

    def _by(self, key: str, *more: tuple[str, str]) -> Target:
        end_user = ("x-tidegate-end-user", f"someone-{next(self._numbers)}")
        return replace(self._target, headers=(("authorization", f"Bearer {key}"), end_user, *more))

    def _new_label(self) -> str:
        return f"soak-{next(self._numbers)}"

    def _new_key(self) -> str:
        parts = ("".join(self._random.choices(_CHARACTERS, k=count)) for count in (8, 43))
        return "_".join(("tg", *parts))
