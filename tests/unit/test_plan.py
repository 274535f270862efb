"""From a name to its attempts, and what a caller is told who may not, or who names what there is not."""

import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.auth.principal import Principal
from tidegate.errors import ModelNotAllowed, ModelNotFound
from tidegate.routing.catalogue import Catalogue, CatalogueTable, build_catalogue
from tidegate.routing.plan import plan, usable_models

WORKSPACE = uuid.uuid4()
names = st.text(st.sampled_from("ab/*[]?-. "), min_size=1, max_size=5)


def a_catalogue(*models: dict[str, Any]) -> Catalogue:
    upstreams = {"openai": {"provider": "openai", "base_url": "http://127.0.0.1:1/v1/"}, "echo": {"provider": "echo"}}
    return build_catalogue(CatalogueTable.model_validate({"upstreams": upstreams, "models": models}), {})


def a_model(name: str, *attempts: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "attempts": attempts or ("echo/x",), **more}


def key(*models: str) -> Principal:
    return Principal(workspace_id=WORKSPACE, key_id=uuid.uuid4(), models=models or None)


def chosen(catalogue: Catalogue, name: str) -> list[str]:
    return [f"{attempt.upstream.name}/{attempt.model}" for attempt in plan(catalogue, name, key()).attempts]


def test_a_name_gives_its_attempts_in_order() -> None:
    catalogue = a_catalogue(a_model("m", "openai/gpt-4.1", "echo/a/b"), a_model("n"))
    assert chosen(catalogue, "m") == ["openai/gpt-4.1", "echo/a/b"]
    assert chosen(catalogue, "n") == ["echo/x"]


def test_a_name_goes_before_a_pattern_and_the_longest_pattern_first() -> None:
    catalogue = a_catalogue(
        a_model("*", "echo/any"), a_model("gpt-*", "echo/gpt"), a_model("gpt-4*", "echo/four"), a_model("gpt-4.1")
    )
    assert chosen(catalogue, "gpt-4.1") == ["echo/x"]
    assert chosen(catalogue, "gpt-4o") == ["echo/four"]
    assert chosen(catalogue, "gpt-5") == ["echo/gpt"]
    assert chosen(catalogue, "other") == ["echo/any"]


def test_a_pattern_passes_the_rest_of_the_name_on_where_its_attempt_says_so() -> None:
    catalogue = a_catalogue(a_model("vendor/*", "openai/*", "echo/pre-*", "echo/fixed"))
    assert chosen(catalogue, "vendor/a/b:c") == ["openai/a/b:c", "echo/pre-a/b:c", "echo/fixed"]


def test_a_model_behind_a_pattern_has_its_own_list_price_and_a_table_holds_for_all() -> None:
    catalogue = a_catalogue(
        a_model("listed/*", "openai/*"),
        a_model("fixed/*", "openai/*", price={"input": "1", "output": "0"}),
        a_model("free/*", "echo/*"),
    )
    [listed] = plan(catalogue, "listed/gpt-4.1", key()).attempts
    assert listed.price is not None
    assert listed.price.version.startswith("genai-prices")
    assert plan(catalogue, "listed/nobody-knows-it", key()).attempts[0].price is None
    assert plan(catalogue, "free/gpt-4.1", key()).attempts[0].price is None
    [fixed] = plan(catalogue, "fixed/gpt-4.1", key()).attempts
    assert fixed.price is not None
    assert fixed.price.dearest(input_tokens=1_000_000, output_tokens=5) == Decimal(1)


@settings(deadline=None)
@given(st.lists(names, min_size=1, max_size=5, unique=True), names)
def test_what_is_found_is_what_the_rules_say(written: list[str], asked: str) -> None:
    catalogue = a_catalogue(*(a_model(name) for name in written))
    exact: list[str | None] = [name for name in written if name == asked and not name.endswith("*")]
    patterns = sorted((name for name in written if name.endswith("*") and asked.startswith(name[:-1])), key=len)
    found = catalogue.find(asked)
    assert (found.name if found else None) == (exact or patterns[-1:] or [None])[0]


@settings(deadline=None)
@given(names, st.text(CHARACTERS, max_size=6))
def test_the_rest_of_a_name_is_what_follows_its_pattern(prefix: str, rest: str) -> None:
    catalogue = a_catalogue(a_model(f"{prefix}*", "echo/up-*"))
    assert chosen(catalogue, prefix + rest) == [f"echo/up-{rest}"]


def test_an_unknown_name_is_answered_with_what_the_key_may_use() -> None:
    catalogue = a_catalogue(a_model("a", groups=["g"]), a_model("b"), a_model("c", groups=["g", "h"]))
    for principal, may_use in [
        (key(), "a, b, c"),
        (key("b"), "b"),
        (key("h"), "c"),
        (key("g"), "a, c"),
        (key("[ab]"), "a, b"),
    ]:
        with pytest.raises(ModelNotFound) as caught:
            plan(catalogue, "none", principal)
        assert caught.value.message == f"There is no model 'none'. It may use: {may_use}."
        assert (caught.value.http_status, caught.value.param) == (404, "model")


def test_a_model_that_the_key_may_not_use_is_a_403_with_what_it_may() -> None:
    catalogue = a_catalogue(a_model("a", groups=["g"]), a_model("b"))
    with pytest.raises(ModelNotAllowed) as caught:
        plan(catalogue, "a", key("b"))
    assert caught.value.message == "This key may not use 'a'. It may use: b."
    assert (caught.value.http_status, caught.value.param) == (403, "model")
    with pytest.raises(ModelNotAllowed, match="It may use none"):
        plan(catalogue, "a", key("nothing"))


def test_long_lists_are_cut() -> None:
    catalogue = a_catalogue(*(a_model(f"m{n:02}") for n in range(23)))
    with pytest.raises(ModelNotFound, match=r"m18, m19 and 3 more\.$"):
        plan(catalogue, "none", key())
    with pytest.raises(ModelNotFound, match=r"m18, m19\.$"):
        plan(a_catalogue(*(a_model(f"m{n:02}") for n in range(20))), "none", key())


def test_a_key_is_held_by_names_groups_and_patterns() -> None:
    catalogue = a_catalogue(a_model("gpt-4", groups=["fast"]), a_model("gpt-5"), a_model("claude", groups=["gpt-5"]))

    def usable(*held: str) -> list[str]:
        return [model.name for model in usable_models(catalogue, key(*held))]

    assert usable() == ["gpt-4", "gpt-5", "claude"]
    assert usable("gpt-*") == ["gpt-4", "gpt-5"]
    assert usable("fast") == ["gpt-4"]
    assert usable("gpt-5") == ["gpt-5", "claude"]
    assert usable("claude", "gpt-4") == ["gpt-4", "claude"]
    assert usable("GPT-*") == []


def test_a_key_is_held_to_its_names_behind_a_pattern_too() -> None:
    catalogue = a_catalogue(a_model("openai/*", "openai/*"))
    assert plan(catalogue, "openai/gpt-4.1", key("openai/gpt-4.1")).name == "openai/gpt-4.1"
    with pytest.raises(ModelNotAllowed):
        plan(catalogue, "openai/gpt-5", key("openai/gpt-4.1"))


def test_a_key_with_an_empty_list_may_use_nothing() -> None:
    catalogue = a_catalogue(a_model("a"))
    principal = Principal(workspace_id=WORKSPACE, models=())
    assert usable_models(catalogue, principal) == []
    with pytest.raises(ModelNotAllowed):
        plan(catalogue, "a", principal)


def test_defaults_are_the_contracts() -> None:
    upstream = a_catalogue(a_model("m", "openai/x")).upstreams["openai"]
    assert upstream.base_url == "http://127.0.0.1:1/v1"
    assert (upstream.max_concurrency, upstream.queue.length, upstream.queue.deadline_s) == (64, 1000, 10)
    assert (upstream.usage_request, upstream.count, upstream.forward_headers) == ("auto", "tokenizer", ())
    timeouts = upstream.timeouts
    assert (timeouts.connect_s, timeouts.write_s, timeouts.headers_s) == (5, 10, 60)
    assert (timeouts.first_token_s, timeouts.idle_s, timeouts.total_s) == (60, 30, 600)
    assert upstream.breaker is not None
    assert (upstream.breaker.failures, upstream.breaker.window_s, upstream.breaker.open_s) == (5, 10, 5)
    [model] = a_catalogue(a_model("m")).models
    assert (model.reserve_output_tokens, model.keepalive, model.keepalive_after_s) == (4096, True, 15)
    assert model.attempts[0].upstream.count == "deltas"
