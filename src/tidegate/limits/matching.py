"""Which limits a request meets: a workspace's limits, compiled once, asked by every request.

All that match apply. What does not depend on the request's attribution is remembered by caller and by what the limits
tell of the model: the patterns among theirs that it matches. So a request costs a dictionary look-up or two, and where
there is no limit at all nothing. A model's name is the caller's word where the catalogue has a pattern: it is kept only
where limits tell models apart. What is remembered is bounded, for all workspaces of a process together.

Those that cut a stream come first.

A model pattern matches a model's name by the rules of `fnmatch`, or a group by its name. Attribution is the caller's
word: limits of end users and tags are met only where the key says that its caller is trusted.
"""

import fnmatch
import uuid
import weakref
from collections.abc import Iterable
from typing import Final

from tidegate.auth.principal import Principal
from tidegate.ledger.entry import Attribution
from tidegate.limits.values import Limit, LimitScope, Matched

# Limits and names. A limit is some 830 bytes once it is compiled: 27 MB a process at most.
_MOST_REMEMBERED: Final = 32_768
_HAVE_ONE_SUBJECT: Final = frozenset({"workspace", "deployment"})
_ONLY: Final = ""

_About = frozenset[str]
"""What limits tell of a model: the patterns among theirs that it matches."""
_NOTHING_TOLD: Final[_About] = frozenset()
_CallerKey = tuple[_About, uuid.UUID | None, uuid.UUID | None]
_ModelKey = tuple[str, tuple[str, ...]]


class Met(tuple[Matched, ...]):  # noqa: SLOT001 - a tuple of any length has no room for slots
    """Limits that a caller meets together, as they are remembered. Beside them `compiled` keeps whatever a higher room
    makes of them once, to use it again for the next request.
    """

    compiled: object | None = None


class Remembered:
    """How much is remembered in one process, by all its workspaces together.

    Where it would be more than `most` (limits and names), all of it is forgotten, and each request makes anew what it
    meets, once.
    """

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._held = 0
        self._holders: weakref.WeakSet[WorkspaceLimits] = weakref.WeakSet()

    def note(self, holder: "WorkspaceLimits", size: int) -> None:
        """`holder` is about to remember this much more."""
        self._held += size
        if self._held > self._most:
            for one in self._holders:
                one.forget()
            self._holders.clear()
            self._held = size
        self._holders.add(holder)


class WorkspaceLimits:
    """The limits that requests of one workspace meet, those of the deployment and of upstreams included.

    `remembered` is the process's; without it what is remembered is bounded for these limits alone.

    >>> limits = WorkspaceLimits([limit])
    >>> limits.caller(principal, attribution, "gpt-4.1", ("standard",))
    (Matched(limit=…, counter='0198…'),)
    """

    __slots__ = (
        "__weakref__",
        "_by_caller",
        "_by_deployment",
        "_by_model",
        "_by_upstream",
        "_deployment",
        "_end_users",
        "_has_owned",
        "_owned",
        "_patterns",
        "_remembered",
        "_tags",
        "_upstreams",
    )

    def __init__(self, limits: Iterable[Limit] = (), remembered: Remembered | None = None) -> None:
        scopes: dict[LimitScope, _Scope] = {}
        patterns: set[str] = set()
        for limit in limits:
            scopes.setdefault(limit.scope, _Scope()).add(limit)
            if limit.model is not None:
                patterns.add(limit.model)
        self._deployment = scopes.get("deployment")
        self._upstreams = scopes.get("upstream")
        self._end_users = scopes.get("end_user")
        self._tags = scopes.get("tag")
        self._owned: tuple[_Scope | None, ...] = (scopes.get("workspace"), scopes.get("user"), scopes.get("key"))
        self._has_owned = any(scope is not None for scope in self._owned)
        self._patterns = tuple(patterns)
        self._remembered = remembered or Remembered()
        self._by_model: dict[_ModelKey, _About] = {}
        self._by_caller: dict[_CallerKey, tuple[Matched, ...]] = {}
        self._by_deployment: dict[_About, tuple[Matched, ...]] = {}
        self._by_upstream: dict[tuple[str, _About], tuple[Matched, ...]] = {}

    def caller(
        self, principal: Principal, attribution: Attribution, model_name: str, groups: tuple[str, ...]
    ) -> tuple[Matched, ...]:
        """The limits of the caller's workspace, user and key, and where it is trusted of its end user and tags."""
        matched: tuple[Matched, ...] = ()
        about = self._about(model_name, groups) if self._patterns else _NOTHING_TOLD
        if self._has_owned:
            remembered = (about, principal.key_id, principal.user_id)
            known = self._by_caller.get(remembered)
            matched = self._owned_by(principal, remembered) if known is None else known
        if not principal.trusts_attribution:
            return matched
        attributed: tuple[Matched, ...] = ()
        if self._end_users is not None and attribution.end_user:
            attributed = self._end_users.meet(attribution.end_user, about)
        if self._tags is not None:
            for name, value in attribution.tags.items():
                attributed += self._tags.meet(f"{name}={value}", about)
        return _cuts_first((*matched, *attributed)) if attributed else matched

    def deployment(self, model_name: str, groups: tuple[str, ...]) -> tuple[Matched, ...]:
        """The limits of the whole deployment."""
        if self._deployment is None:
            return ()
        about = self._about(model_name, groups) if self._patterns else _NOTHING_TOLD
        known = self._by_deployment.get(about)
        if known is None:
            known = Met(_cuts_first(self._deployment.meet(_ONLY, about)))
            self._remembered.note(self, 1 + len(known))
            self._by_deployment[about] = known
        return known

    def upstream(self, upstream: str, model_name: str, groups: tuple[str, ...]) -> tuple[Matched, ...]:
        """The limits of an upstream, for an attempt there."""
        if self._upstreams is None:
            return ()
        about = self._about(model_name, groups) if self._patterns else _NOTHING_TOLD
        known = self._by_upstream.get((upstream, about))
        if known is None:
            known = Met(self._upstreams.meet(upstream, about))
            self._remembered.note(self, 1 + len(known))
            self._by_upstream[upstream, about] = known
        return known

    def forget(self) -> None:
        """Forgets what was remembered; the limits are the same."""
        for memory in (self._by_model, self._by_caller, self._by_deployment, self._by_upstream):
            memory.clear()

    def _about(self, model_name: str, groups: tuple[str, ...]) -> _About:
        known = self._by_model.get((model_name, groups))
        if known is None:
            known = frozenset(one for one in self._patterns if _matches(one, model_name, groups))
            self._remembered.note(self, 1)
            self._by_model[model_name, groups] = known
        return known

    def _owned_by(self, principal: Principal, remembered: _CallerKey) -> tuple[Matched, ...]:
        about, key_id, user_id = remembered
        matched: tuple[Matched, ...] = ()
        for scope, subject in zip(self._owned, (principal.workspace_id, user_id, key_id), strict=True):
            if scope is not None and subject is not None:
                matched += scope.meet(str(subject), about)
        met = Met(_cuts_first(matched))
        self._remembered.note(self, 1 + len(met))
        self._by_caller[remembered] = met
        return met


def _cuts_first(matched: tuple[Matched, ...]) -> tuple[Matched, ...]:
    """Of several limits that refuse a stream more, the first is told: those that cut it are to be that."""
    if len(matched) < 2:
        return matched
    return tuple(sorted(matched, key=lambda one: one.limit.on_overrun != "cut"))


class _Scope:
    """The limits of one scope: those of one subject by it, and those of every subject."""

    __slots__ = ("_each", "_named")

    def __init__(self) -> None:
        self._named: dict[str, list[Matched]] = {}
        self._each: list[Matched] = []

    def add(self, limit: Limit) -> None:
        matched = Matched(limit, limit.id.hex)
        if limit.subject is not None:
            self._named.setdefault(limit.subject, []).append(matched)
        else:
            self._each.append(matched)

    def meet(self, subject: str, about: _About) -> tuple[Matched, ...]:
        named = [one for one in self._named.get(subject, ()) if _is_told(one.limit, about)]
        each = [_counted_apart(one, subject) for one in self._each if _is_told(one.limit, about)]
        return (*named, *each)


def _is_told(limit: Limit, about: _About) -> bool:
    return limit.model is None or limit.model in about


def _counted_apart(matched: Matched, subject: str) -> Matched:
    # A workspace and a deployment have themselves as their one subject.
    if matched.limit.scope in _HAVE_ONE_SUBJECT:
        return matched
    return Matched(matched.limit, f"{matched.counter}:{subject}")


def covers(limit: Limit, model_name: str, groups: tuple[str, ...]) -> bool:
    """Whether a limit is about this model: by its name, by one of its groups, or by a pattern."""
    return limit.model is None or _matches(limit.model, model_name, groups)


def _matches(pattern: str, model_name: str, groups: tuple[str, ...]) -> bool:
    return pattern == model_name or pattern in groups or fnmatch.fnmatchcase(model_name, pattern)
