"""What tokens cost, in exact decimals of US dollars.

A `Price` is a table of rates a million tokens, by tier of a request's whole input: past a tier's start every token of
the request is charged at that tier's rates, as the vendors do. An unpriced model has no `Price`: its cost is null,
never 0.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING

from tidegate.ledger.entry import Tokens

if TYPE_CHECKING:
    from genai_prices.types import TieredPrices

_MILLION = Decimal(1_000_000)
_PLACES = 12


@dataclass(frozen=True, slots=True)
class Rates:
    """USD a million tokens, by class."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    output: Decimal

    def of(self, tokens: Tokens) -> Decimal:
        return (
            self.input * tokens.input
            + self.cached_input * tokens.cached_input
            + self.cache_write * tokens.cache_write
            + self.cache_write_1h * tokens.cache_write_1h
            + self.output * (tokens.output + tokens.reasoning)
        ) / _MILLION


@dataclass(frozen=True, slots=True)
class Price:
    """Rates by tier, from the lowest start upward, and the version of the list that they come from.

    >>> price = price_from_table({"input": Decimal("2"), "output": Decimal("8")})
    >>> price.cost(Tokens(input=1_000_000, output=500_000))
    Decimal('6')
    """

    tiers: tuple[tuple[int, Rates], ...]
    version: str

    def cost(self, tokens: Tokens) -> Decimal:
        whole_input = tokens.input + tokens.cached_input + tokens.cache_write + tokens.cache_write_1h
        return _storable(self._rates(whole_input).of(tokens))

    def dearest(self, *, input_tokens: int, output_tokens: int) -> Decimal:
        """The most that so many tokens can cost: what a reservation holds. Input is priced at its dearest class."""
        rates = self._rates(input_tokens)
        dearest_input = max(rates.input, rates.cached_input, rates.cache_write, rates.cache_write_1h)
        return _storable((dearest_input * input_tokens + rates.output * output_tokens) / _MILLION)

    def _rates(self, whole_input: int) -> Rates:
        rates = self.tiers[0][1]
        for start, tier_rates in self.tiers:
            if whole_input > start:
                rates = tier_rates
        return rates


def price_from_table(table: dict[str, Decimal]) -> Price:
    """A price from the configuration. What a table leaves out of the input's classes is charged as input."""
    plain = table["input"]
    write = table.get("cache_write", plain)
    rates = Rates(
        input=plain,
        cached_input=table.get("cached_input", plain),
        cache_write=write,
        cache_write_1h=table.get("cache_write_1h", write),
        output=table["output"],
    )
    return Price(((0, rates),), "configured")


def price_from_catalogue(provider: str, model: str) -> Price | None:
    """The list price of a vendor's model, from genai-prices as shipped; None where that list does not know it."""
    # 0.4 s to import: only where a model asks for list prices.
    from genai_prices import data_snapshot  # noqa: PLC0415

    provider_id = {"gemini": "google"}.get(provider, provider)
    try:
        _, found = data_snapshot.get_snapshot().find_provider_model(model, None, provider_id, None)
    except LookupError:
        return None
    listed = found.get_prices(datetime.now(UTC))
    starts = {0, *(tier.start for tier in getattr(listed.input_mtok, "tiers", ()))}
    tiers = []
    for start in sorted(starts):
        plain, output = _listed_rate(listed.input_mtok, start), _listed_rate(listed.output_mtok, start)
        if plain is None or output is None:
            return None
        write = _given(_listed_rate(listed.cache_write_mtok, start), plain)
        rates = Rates(
            input=plain,
            cached_input=_given(_listed_rate(listed.cache_read_mtok, start), plain),
            cache_write=write,
            cache_write_1h=_given(_listed_rate(listed.cache_write_1h_mtok, start), write),
            output=output,
        )
        tiers.append((start, rates))
    return Price(tuple(tiers), f"genai-prices {version('genai-prices')}")


def _storable(usd: Decimal) -> Decimal:
    """At most as many places as the database keeps, so that an entry's sum is the sum of its rows."""
    exponent = usd.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -_PLACES:
        return usd.quantize(Decimal(1).scaleb(-_PLACES), ROUND_HALF_UP)
    return usd


def _listed_rate(listed: "Decimal | TieredPrices | None", start: int) -> Decimal | None:
    if listed is None or isinstance(listed, Decimal):
        return listed
    rate = listed.base
    for tier in listed.tiers:
        if start >= tier.start:
            rate = tier.price
    return rate


def _given(rate: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if rate is None else rate
