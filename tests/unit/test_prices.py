"""What tokens cost: exact, by tier of the whole input, zero where that is the price and none where there is none."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.ledger.entry import Tokens
from tidegate.ledger.prices import Price, Rates, _given, price_from_catalogue, price_from_table

rates = st.decimals(0, 1000, places=6)
counts = st.integers(0, 10**9)
tokens = st.builds(
    Tokens,
    input=counts,
    cached_input=counts,
    cache_write=counts,
    cache_write_1h=counts,
    output=counts,
    reasoning=counts,
)
tables = st.fixed_dictionaries(
    {"input": rates, "output": rates},
    optional={"cached_input": rates, "cache_write": rates, "cache_write_1h": rates},
)


def flat(rate: int | Decimal, output: int | Decimal = 0) -> Rates:
    plain = Decimal(rate)
    return Rates(plain, plain, plain, plain, Decimal(output))


@settings(deadline=None)
@given(tables, tokens)
def test_the_cost_is_exact(table: dict[str, Decimal], used: Tokens) -> None:
    plain = table["input"]
    write = table.get("cache_write", plain)
    expected = (
        Fraction(plain) * used.input
        + Fraction(table.get("cached_input", plain)) * used.cached_input
        + Fraction(write) * used.cache_write
        + Fraction(table.get("cache_write_1h", write)) * used.cache_write_1h
        + Fraction(table["output"]) * (used.output + used.reasoning)
    ) / 1_000_000
    assert Fraction(price_from_table(table).cost(used)) == expected


@settings(deadline=None)
@given(tables, tables, tokens, st.integers(0, 10**9))
def test_a_reservation_holds_the_most_that_so_many_tokens_can_cost(
    table: dict[str, Decimal], dearer: dict[str, Decimal], used: Tokens, start: int
) -> None:
    base, more = price_from_table(table).tiers[0][1], price_from_table(dearer).tiers[0][1]
    second = Rates(
        input=base.input + more.input,
        cached_input=base.cached_input + more.cached_input,
        cache_write=base.cache_write + more.cache_write,
        cache_write_1h=base.cache_write_1h + more.cache_write_1h,
        output=base.output + more.output,
    )
    price = Price(((0, base), (start, second)), "test")
    whole_input = used.input + used.cached_input + used.cache_write + used.cache_write_1h
    held = price.dearest(input_tokens=whole_input, output_tokens=used.output + used.reasoning)
    assert held >= price.cost(used)


@pytest.mark.parametrize(
    ("used", "rate"),
    [
        (Tokens(), 1),
        (Tokens(input=200), 1),
        (Tokens(input=201), 2),
        (Tokens(input=101, cached_input=100), 2),
        (Tokens(cache_write=500), 2),
        (Tokens(input=501), 3),
        (Tokens(output=900, reasoning=900), 1),
    ],
)
def test_past_a_tiers_start_every_token_is_charged_at_its_rates(used: Tokens, rate: int) -> None:
    price = Price(tuple((start, flat(n, n)) for start, n in ((0, 1), (200, 2), (500, 3))), "test")
    total = used.input + used.cached_input + used.cache_write + used.output + used.reasoning
    assert price.cost(used) == Decimal(rate) * total / 1_000_000


def test_a_rate_of_zero_is_a_rate() -> None:
    table = {"input": Decimal(2), "cached_input": Decimal(0), "cache_write": Decimal(0), "output": Decimal(0)}
    price = price_from_table(table)
    assert price.cost(Tokens(cached_input=10**6, cache_write=10**6, cache_write_1h=10**6, output=10**6)) == 0
    assert price.cost(Tokens(input=10**6, cached_input=10**6)) == 2
    free = price_from_table({"input": Decimal(0), "output": Decimal(0)})
    assert free.cost(Tokens(input=5, output=5)) == Decimal(0)
    assert free.dearest(input_tokens=5, output_tokens=5) == Decimal(0)
    assert bool(free)
    # In the shipped list too: a class that is free is not one that is left out.
    assert (_given(Decimal(0), Decimal(5)), _given(None, Decimal(5))) == (Decimal(0), Decimal(5))


def test_no_tokens_cost_nothing_which_is_a_cost() -> None:
    assert price_from_table({"input": Decimal(2), "output": Decimal(8)}).cost(Tokens()) == Decimal(0)


def test_list_prices_are_those_of_the_shipped_list() -> None:
    price = price_from_catalogue("openai", "gpt-4.1")
    assert price is not None
    used = Tokens(input=10**6, cached_input=10**6, output=10**6)
    assert price.cost(used) == Decimal("10.5")
    assert price.version.startswith("genai-prices ")


def test_list_prices_have_their_tiers() -> None:
    price = price_from_catalogue("openai", "gpt-5.4")
    assert price is not None
    [(_, low), (start, high)] = price.tiers
    assert high.input > low.input
    assert price.cost(Tokens(input=start)) == low.input * start / 10**6
    assert price.cost(Tokens(input=start + 1)) == high.input * (start + 1) / 10**6


@pytest.mark.parametrize(("provider", "model"), [("openai", "nobody-knows-it"), ("openai", ""), ("nobody", "gpt-4.1")])
def test_what_the_list_does_not_know_has_no_price(provider: str, model: str) -> None:
    assert price_from_catalogue(provider, model) is None
