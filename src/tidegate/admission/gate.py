"""The gate before the road: who may go on now, by the limits of the deployment and of the caller's workspace.

Steps are taken in one order, `d` then `w:<workspace>`, once a request, and each all or nothing; a later refusal undoes
the earlier. What was taken is given back in one place, by leaving `Admitted`'s context: as spent where the request
reached an upstream, as if it had never been where it did not. An upstream's slots are the attempt's (`slots.py`).
"""

import asyncio
import uuid
from types import TracebackType
from typing import Self

import msgspec

from tidegate.admission.checks import Reserve
from tidegate.admission.steps import Steps, Taken
from tidegate.admission.store import UNDO, Spent
from tidegate.auth.principal import Principal
from tidegate.errors import AnswerCut, ModelNotAllowed, TidegateError
from tidegate.ledger.entry import Attribution, Entry
from tidegate.limits.book import LimitBook
from tidegate.limits.matching import WorkspaceLimits
from tidegate.limits.values import Matched, nano_usd
from tidegate.storage.redis import DEPLOYMENT_TAG, workspace_tag

# From which part of what was reserved on more is asked for.
TOP_UP_AT = 0.8


class CallerAsk(msgspec.Struct, frozen=True):
    """A request at the gate. `reserve` is what it may come to; `more` what a longer answer reserves at a time."""

    entry_id: uuid.UUID
    principal: Principal
    attribution: Attribution
    model: str
    groups: tuple[str, ...]
    reserve: Reserve
    output_tokens: int
    more: Reserve


_Step = tuple[str, tuple[Matched, ...]]
"""The tag of a step that was taken, and the limits that it was judged by."""


class Admitted:
    """A request that was let in: what it took, until its context is left.

    `headers` tell its limits, `entry` names it in the store. `spent` is what is given back at exit: `came_to` sets it
    where an upstream was reached. `topped_up` is what was reserved of money on the way, in nano-USD.
    """

    __slots__ = (
        "_ask",
        "_cut",
        "_reserved_output",
        "_steps",
        "_taken",
        "_top_up",
        "entry",
        "headers",
        "limits",
        "spent",
        "topped_up",
    )

    def __init__(self, steps: Steps, ask: CallerAsk, limits: WorkspaceLimits) -> None:
        self.headers: dict[str, str] = {}
        self.limits = limits
        self.spent = UNDO
        self.topped_up = 0
        self._steps = steps
        self._ask = ask
        self.entry = ask.entry_id.hex
        self._taken: tuple[_Step, ...] = ()
        self._reserved_output = ask.output_tokens
        self._top_up: asyncio.Task[None] | None = None
        self._cut: TidegateError | None = None

    @property
    def reserve(self) -> Reserve:
        return self._ask.reserve

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._top_up is not None:
            self._top_up.cancel()
        taken, self._taken = self._taken, ()
        # The step that was taken last is the first.
        for tag, _ in taken:
            self._steps.desk.release(tag, self.entry, self.spent)

    def came_to(self, entry: Entry) -> None:
        """What the terminal entry says: nothing where no upstream was reached."""
        if entry.attempts:
            self.spent = spent_of(entry)

    def note_output(self, tokens: int) -> None:
        """Asks for more where a stream nears what was reserved for it. Raises what cuts it."""
        if self._cut is not None:
            raise self._cut
        if tokens < self._reserved_output * TOP_UP_AT or not self._taken or self._top_up is not None:
            return
        if any(one.limit.meter in ("tokens", "cost") for _, limits in self._taken for one in limits):
            self._top_up = asyncio.get_running_loop().create_task(self._reserve_more())

    def took(self, tag: str, limits: tuple[Matched, ...], taken: Taken) -> None:
        """One step was taken: it is given back with the others, and its limits are told."""
        self._taken = ((tag, limits), *self._taken)
        told = taken.headers()
        if not self.headers:
            self.headers = told
            return
        # Of two steps with limits, the workspace's are told in OpenAI's form, and all in the draft's.
        for name in ("RateLimit", "RateLimit-Policy"):
            if name in self.headers and name in told:
                told[name] = f"{self.headers[name]}, {told[name]}"
        self.headers |= told

    async def _reserve_more(self) -> None:
        """Tops up every tag, as far as there is room. Where it is refused, a limit that cuts has the last word."""
        more = Spent(self._ask.more.tokens, self._ask.more.cost or 0)
        for tag, limits in reversed(self._taken):
            reply = await self._steps.desk.top_up(tag, self.entry, more)
            if reply is not None and reply.said == "refused":
                limit = limits[reply.at].limit
                if limit.on_overrun == "cut":
                    self._cut = AnswerCut(f"The answer was cut: {limit.label!r} has no room for more of it.")
                # Left as it is: asked for once, refused once; the stream goes on, and what it came to is counted.
                return
        self._reserved_output += self._ask.more.tokens
        self.topped_up += more.cost
        self._top_up = None


class Gate:
    """Lets requests in.

    >>> admitted = await gate.admit(ask)
    >>> with admitted: ...
    """

    def __init__(self, steps: Steps, book: LimitBook) -> None:
        self._steps = steps
        self._book = book

    async def admit(self, ask: CallerAsk) -> Admitted:
        """Takes what the request's limits ask for. Raises `RateLimitExceeded`, `InsufficientQuota`, `ModelNotAllowed`
        (an unpriced model under a budget) and `Unavailable`.
        """
        principal = ask.principal
        workspace_id, key_id = principal.workspace_id, principal.key_id
        limits = self._book.known(workspace_id, key_id) or await self._book.of(workspace_id, key_id=key_id)
        admitted = Admitted(self._steps, ask, limits)
        deployment = limits.deployment(ask.model, ask.groups)
        own = limits.caller(principal, ask.attribution, ask.model, ask.groups)
        if ask.reserve.cost is None and (deployment or own):
            refuse_unpriced(ask.model, (*deployment, *own))
        try:
            if deployment:
                taken = await self._steps.take(DEPLOYMENT_TAG, admitted.entry, deployment, ask.reserve)
                admitted.took(DEPLOYMENT_TAG, deployment, taken)
            if own:
                tag = workspace_tag(workspace_id)
                admitted.took(tag, own, await self._steps.take(tag, admitted.entry, own, ask.reserve))
        except BaseException:
            with admitted:
                raise
        return admitted


def spent_of(entry: Entry) -> Spent:
    """What a terminal entry came to, in tokens and nano-USD rounded up."""
    cost = 0 if entry.cost is None else nano_usd(entry.cost)
    return Spent(entry.total_tokens, cost, ended_ms=int(entry.ended_at.timestamp() * 1000))


def refuse_unpriced(model: str, limits: tuple[Matched, ...]) -> None:
    """Raises `ModelNotAllowed` where a budget would have to be kept with a model that has no price."""
    budget = next((one.limit for one in limits if one.limit.meter == "cost" and one.limit.action == "refuse"), None)
    if budget is not None:
        raise ModelNotAllowed(
            f"The model {model!r} has no price, so the budget {budget.label!r} cannot be kept with it: "
            "use another model, or ask for a price to be configured.",
            param="model",
        )
