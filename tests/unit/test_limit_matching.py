"""Which limits a request meets: all that match, and none that does not."""

import uuid
import weakref
from typing import Any

from tests.unit.limits import a_limit
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.auth.principal import Principal
from tidegate.ledger.entry import Attribution
from tidegate.limits.matching import Remembered, WorkspaceLimits
from tidegate.limits.values import Limit

KEY, USER = uuid.uuid4(), uuid.uuid4()
CALLER = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=KEY, user_id=USER)
TRUSTED = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=KEY, trusts_attribution=True)
ZOE = Attribution(end_user="Zoë", tags={"team": "red", "stage": "test"})


def met(*limits: Limit, principal: Principal = CALLER, attribution: Any = ZOE, model: str = "gpt-4.1") -> list[Limit]:
    matched = WorkspaceLimits(limits).caller(principal, attribution, model, ("standard",))
    return [one.limit for one in matched]


def counters(*limits: Limit, principal: Principal = CALLER) -> list[str]:
    return [one.counter for one in WorkspaceLimits(limits).caller(principal, ZOE, "gpt-4.1", ())]


def test_no_limits_match_nothing() -> None:
    limits, other = WorkspaceLimits(), WorkspaceLimits([a_limit(scope="upstream")])
    assert limits.caller(CALLER, ZOE, "gpt-4.1", ()) == ()
    assert limits.deployment("gpt-4.1", ()) == limits.upstream("openai", "gpt-4.1", ()) == ()
    assert other.caller(CALLER, ZOE, "gpt-4.1", ()) == other.deployment("gpt-4.1", ()) == ()


def test_a_limit_is_met_by_its_own_subject_alone() -> None:
    for scope, subject in (("key", KEY), ("user", USER), ("workspace", None), ("workspace", DEFAULT_WORKSPACE_ID)):
        limit = a_limit(scope=scope, subject=subject)
        assert met(limit) == [limit]
        # Looked up again: remembered, and the same.
        compiled = WorkspaceLimits([limit])
        assert {compiled.caller(CALLER, ZOE, "m", ()) for _ in range(3)} == {compiled.caller(CALLER, ZOE, "m", ())}
    for scope in ("key", "user", "workspace"):
        assert met(a_limit(scope=scope, subject=uuid.uuid4())) == []


def test_who_has_no_key_or_no_user_meets_no_limit_of_one() -> None:
    nobody = Principal(workspace_id=DEFAULT_WORKSPACE_ID)
    assert met(a_limit(scope="key"), a_limit(scope="user"), principal=nobody) == []


def test_callers_are_told_apart() -> None:
    limits = WorkspaceLimits([a_limit(subject=KEY), a_limit(scope="user", subject=USER)])
    for key_id, user_id, count in ((KEY, USER, 2), (None, USER, 1), (KEY, None, 1), (uuid.uuid4(), uuid.uuid4(), 0)):
        principal = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=key_id, user_id=user_id)
        assert len(limits.caller(principal, ZOE, "m", ())) == count


def test_all_that_match_apply() -> None:
    limits = [
        a_limit(scope="workspace", meter="cost", window="month"),
        a_limit(scope="user", subject=USER, meter="tokens"),
        a_limit(subject=KEY, amount=1),
        a_limit(subject=KEY, amount=2, action="alert"),
        a_limit(),
    ]
    assert met(*limits) == limits


def test_a_limit_of_every_subject_counts_each_apart() -> None:
    each, own = a_limit(), a_limit(subject=KEY)
    assert counters(own, each) == [own.id.hex, f"{each.id.hex}:{KEY}"]
    other = uuid.uuid4()
    assert counters(each, principal=Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=other)) == [
        f"{each.id.hex}:{other}"
    ]
    end_user, tag, workspace = a_limit(scope="end_user"), a_limit(scope="tag"), a_limit(scope="workspace")
    assert counters(end_user, tag, workspace, principal=TRUSTED) == [
        workspace.id.hex,
        f"{end_user.id.hex}:Zoë",
        f"{tag.id.hex}:team=red",
        f"{tag.id.hex}:stage=test",
    ]


def test_end_users_and_tags_count_only_where_the_caller_is_trusted() -> None:
    limits = [a_limit(scope="end_user", subject="Zoë"), a_limit(scope="tag", subject="team=red"), a_limit(scope="tag")]
    assert met(*limits) == []
    assert met(*limits, principal=TRUSTED) == [limits[0], limits[1], limits[2], limits[2]]
    assert met(*limits, principal=TRUSTED, attribution=Attribution(end_user="Max", tags={"team": "blue"})) == [
        limits[2]
    ]
    assert met(*limits, principal=TRUSTED, attribution=Attribution()) == []


def test_a_model_is_met_by_name_pattern_or_group() -> None:
    for model in ("gpt-4.1", "gpt-*", "gpt-?.1", "standard", None):
        assert len(met(a_limit(model=model))) == 1, model
    for model in ("gpt-4", "GPT-*", "stand*", "dear"):
        assert met(a_limit(model=model)) == [], model


def test_models_and_groups_are_remembered_apart() -> None:
    limits = WorkspaceLimits([a_limit(model="standard"), a_limit(model="gpt-*", scope="workspace")])
    for _ in range(2):
        assert len(limits.caller(CALLER, ZOE, "gpt-4.1", ("standard",))) == 2
        assert len(limits.caller(CALLER, ZOE, "gpt-4.1", ())) == 1
        assert limits.caller(CALLER, ZOE, "llama", ()) == ()


def test_the_deployment_and_an_upstream_have_their_own() -> None:
    deployment, openai, each = (
        a_limit(scope="deployment"),
        a_limit(scope="upstream", subject="openai"),
        a_limit(scope="upstream"),
    )
    limits = WorkspaceLimits([deployment, openai, each, a_limit(scope="upstream", model="llama")])
    for _ in range(2):
        assert limits.caller(TRUSTED, ZOE, "gpt-4.1", ()) == ()
        assert [one.counter for one in limits.deployment("gpt-4.1", ())] == [deployment.id.hex]
        assert [one.counter for one in limits.upstream("openai", "gpt-4.1", ())] == [
            openai.id.hex,
            f"{each.id.hex}:openai",
        ]
        assert [one.counter for one in limits.upstream("azure", "gpt-4.1", ())] == [f"{each.id.hex}:azure"]
        assert len(limits.upstream("azure", "llama", ())) == 2


def _remembered(limits: WorkspaceLimits) -> int:
    memories = (limits._by_model, limits._by_caller, limits._by_deployment, limits._by_upstream)
    return sum(len(memory) for memory in memories)


def test_names_that_callers_make_up_are_not_remembered_where_no_limit_tells_models_apart() -> None:
    limits = WorkspaceLimits([a_limit(), a_limit(scope="deployment"), a_limit(scope="upstream")])
    for n in range(100):
        assert len(limits.caller(CALLER, ZOE, f"m{n}", ())) == 1
        assert len(limits.deployment(f"m{n}", ())) == len(limits.upstream("openai", f"m{n}", ())) == 1
    assert _remembered(limits) == 3


def test_limits_are_compiled_once_for_all_names_that_they_do_not_tell_apart() -> None:
    limits = WorkspaceLimits([a_limit(), a_limit(model="m*")])
    first, second = (limits.caller(CALLER, ZOE, name, ()) for name in ("m1", "m2"))
    assert first is second
    assert len(first) == 2
    assert len(limits.caller(CALLER, ZOE, "gpt", ())) == 1


def test_what_is_remembered_is_bounded_for_all_workspaces_together() -> None:
    remembered = Remembered(most=60)
    pattern = [a_limit(), a_limit(scope="deployment", model="m*"), a_limit(scope="upstream")]
    all_limits = [WorkspaceLimits(pattern, remembered) for _ in range(5)]
    for n in range(200):
        limits = all_limits[n % 5]
        key = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=uuid.uuid4())
        assert len(limits.caller(key, ZOE, f"m{n}", ())) == 1
        assert len(limits.deployment(f"m{n}", ())) == len(limits.upstream("openai", f"m{n}", ())) == 1
        assert sum(_remembered(one) for one in all_limits) <= 60


def test_limits_that_are_read_anew_leave_nothing_behind() -> None:
    remembered = Remembered()
    limits: WorkspaceLimits | None = WorkspaceLimits([a_limit()], remembered)
    gone = weakref.ref(limits)
    assert limits is not None
    limits.caller(CALLER, ZOE, "m", ())
    limits = None
    assert gone() is None
