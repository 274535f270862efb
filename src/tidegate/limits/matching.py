"""Which limits a request meets: a workspace's limits, compiled once, asked by every request.

All that match apply. What does not depend on the request's attribution is remembered by model and caller, so that a
request costs one dictionary look-up; where there is no limit at all it costs nothing. What is remembered is bounded.

Those that cut a stream come first.

A model pattern matches a model's name by the rules of `fnmatch`, or a group by its name. Attribution is the caller's
word: limits of end users and tags are met only where the key says that its caller is trusted.
"""

import fnmatch
import uuid
from collections.abc import Iterable
from typing import Final, TypeVar

from tidegate.auth.principal import Principal
from tidegate.ledger.entry import Attribution
from tidegate.limits.values import Limit, LimitScope, Matched

_MOST_REMEMBERED: Final = 4096
_HAVE_ONE_SUBJECT: Final = frozenset({"workspace", "deployment"})
_ONLY: Final = ""

_CallerKey = tuple[str, tuple[str, ...], uuid.UUID | None, uuid.UUID | None]
_ModelKey = tuple[str, tuple[str, ...]]
_Key = TypeVar("_Key")


class Met(tuple[Matched, ...]):  # noqa: SLOT001 - a tuple of any length has no room for slots
    """Limits that a caller meets together, as they are remembered. Beside them `compiled` keeps whatever a higher room
    makes of them once, to use it again for the next request.
    """

    compiled: object | None = None


class WorkspaceLimits:
    """The limits that requests of one workspace meet, those of the deployment and of upstreams included.

    >>> limits = WorkspaceLimits([limit])
    >>> limits.caller(principal, attribution, "gpt-4.1", ("standard",))
    (Matched(limit=…, counter='0198…'),)
    """

    __slots__ = (
        "_by_caller",
        "_by_deployment",
        "_by_upstream",
        "_deployment",
        "_end_users",
        "_has_owned",
        "_owned",
        "_tags",
        "_upstreams",
    )

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        scopes: dict[LimitScope, _Scope] = {}
        for limit in limits:
            scopes.setdefault(limit.scope, _Scope()).add(limit)
        self._deployment = scopes.get("deployment")
        self._upstreams = scopes.get("upstream")
        self._end_users = scopes.get("end_user")
        self._tags = scopes.get("tag")
        self._owned: tuple[_Scope | None, ...] = (scopes.get("workspace"), scopes.get("user"), scopes.get("key"))
        self._has_owned = any(scope is not None for scope in self._owned)
        self._by_caller: dict[_CallerKey, tuple[Matched, ...]] = {}
        self._by_deployment: dict[_ModelKey, tuple[Matched, ...]] = {}
        self._by_upstream: dict[tuple[str, str, tuple[str, ...]], tuple[Matched, ...]] = {}

    def caller(
        self, principal: Principal, attribution: Attribution, model_name: str, groups: tuple[str, ...]
    ) -> tuple[Matched, ...]:
        """The limits of the caller's workspace, user and key, and where it is trusted of its end user and tags."""
        matched: tuple[Matched, ...] = ()
        if self._has_owned:
            remembered = (model_name, groups, principal.key_id, principal.user_id)
            known = self._by_caller.get(remembered)
            matched = self._owned_by(principal, remembered) if known is None else known
        if not principal.trusts_attribution:
            return matched
        attributed: tuple[Matched, ...] = ()
        if self._end_users is not None and attribution.end_user:
            attributed = self._end_users.meet(attribution.end_user, model_name, groups)
        if self._tags is not None:
            for name, value in attribution.tags.items():
                attributed += self._tags.meet(f"{name}={value}", model_name, groups)
        return _cuts_first((*matched, *attributed)) if attributed else matched

    def deployment(self, model_name: str, groups: tuple[str, ...]) -> tuple[Matched, ...]:
        """The limits of the whole deployment."""
        if self._deployment is None:
            return ()
        known = self._by_deployment.get((model_name, groups))
        if known is None:
            known = Met(_cuts_first(self._deployment.meet(_ONLY, model_name, groups)))
            _remember(self._by_deployment, (model_name, groups), known)
        return known

    def upstream(self, upstream: str, model_name: str, groups: tuple[str, ...]) -> tuple[Matched, ...]:
        """The limits of an upstream, for an attempt there."""
        if self._upstreams is None:
            return ()
        known = self._by_upstream.get((upstream, model_name, groups))
        if known is None:
            known = Met(self._upstreams.meet(upstream, model_name, groups))
            _remember(self._by_upstream, (upstream, model_name, groups), known)
        return known

    def _owned_by(self, principal: Principal, remembered: _CallerKey) -> tuple[Matched, ...]:
        model_name, groups, key_id, user_id = remembered
        matched: tuple[Matched, ...] = ()
        for scope, subject in zip(self._owned, (principal.workspace_id, user_id, key_id), strict=True):
            if scope is not None and subject is not None:
                matched += scope.meet(str(subject), model_name, groups)
        met = Met(_cuts_first(matched))
        _remember(self._by_caller, remembered, met)
        return met


def _cuts_first(matched: tuple[Matched, ...]) -> tuple[Matched, ...]:
    """Of several limits that refuse a stream more, the first is told: those that cut it are to be that."""
    if len(matched) < 2:
        return matched
    return tuple(sorted(matched, key=lambda one: one.limit.on_overrun != "cut"))


class _Scope:
    """The limits of one scope: those of one subject by it, and those of every subject."""

    __slots__ = ("_each", "_each_by_model", "_named")

    def __init__(self) -> None:
        self._named: dict[str, list[Matched]] = {}
        self._each: list[Matched] = []
        self._each_by_model: dict[_ModelKey, tuple[Matched, ...]] = {}

    def add(self, limit: Limit) -> None:
        matched = Matched(limit, limit.id.hex)
        if limit.subject is not None:
            self._named.setdefault(limit.subject, []).append(matched)
        else:
            self._each.append(matched)

    def meet(self, subject: str, model_name: str, groups: tuple[str, ...]) -> tuple[Matched, ...]:
        each = self._each_by_model.get((model_name, groups))
        if each is None:
            each = tuple(one for one in self._each if covers(one.limit, model_name, groups))
            _remember(self._each_by_model, (model_name, groups), each)
        named = [one for one in self._named.get(subject, ()) if covers(one.limit, model_name, groups)]
        return (*named, *[_counted_apart(one, subject) for one in each])


def _counted_apart(matched: Matched, subject: str) -> Matched:
    # A workspace and a deployment have themselves as their one subject.
    if matched.limit.scope in _HAVE_ONE_SUBJECT:
        return matched
    return Matched(matched.limit, f"{matched.counter}:{subject}")


def covers(limit: Limit, model_name: str, groups: tuple[str, ...]) -> bool:
    """Whether a limit is about this model: by its name, by one of its groups, or by a pattern."""
    pattern = limit.model
    if pattern is None or pattern == model_name or pattern in groups:
        return True
    return fnmatch.fnmatchcase(model_name, pattern)


def _remember(memory: dict[_Key, tuple[Matched, ...]], key: _Key, matched: tuple[Matched, ...]) -> None:
    if len(memory) >= _MOST_REMEMBERED:
        del memory[next(iter(memory))]
    memory[key] = matched
