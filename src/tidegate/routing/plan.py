"""From the name that a caller gives to the ordered attempts behind it. Pure: no I/O."""

from dataclasses import dataclass, replace

from tidegate.auth.principal import Principal
from tidegate.errors import ModelNotAllowed, ModelNotFound
from tidegate.routing.catalogue import Catalogue, Model, PlannedAttempt, list_price

_MOST_NAMES_IN_A_MESSAGE = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be tried for one request, in order. `name` is as the caller wrote it."""

    name: str
    model: Model
    attempts: tuple[PlannedAttempt, ...]


def plan(catalogue: Catalogue, name: str, principal: Principal) -> Plan:
    """The plan for a model's name. Raises `ModelNotFound` (with what the caller may use) or `ModelNotAllowed`."""
    model = catalogue.find(name)
    if model is None:
        raise ModelNotFound(f"There is no model {name!r}. {_usable(catalogue, principal)}", param="model")
    if not principal.may_use(name, model.groups):
        raise ModelNotAllowed(f"This key may not use {name!r}. {_usable(catalogue, principal)}", param="model")
    if not model.name.endswith("*"):
        return Plan(name, model, model.attempts)
    rest = name.removeprefix(model.name.removesuffix("*"))
    return Plan(name, model, tuple(_passed_on(attempt, rest, model) for attempt in model.attempts))


def usable_models(catalogue: Catalogue, principal: Principal) -> list[Model]:
    """The models that a caller may name, in the catalogue's order."""
    return [model for model in catalogue.models if principal.may_use(model.name, model.groups)]


def _passed_on(attempt: PlannedAttempt, rest: str, model: Model) -> PlannedAttempt:
    if not attempt.model.endswith("*"):
        return attempt
    name = attempt.model.removesuffix("*") + rest
    price = list_price(attempt.upstream.provider, name) if model.listed_price else attempt.price
    return replace(attempt, model=name, price=price)


def _usable(catalogue: Catalogue, principal: Principal) -> str:
    names = [model.name for model in usable_models(catalogue, principal)]
    if not names:
        return "It may use none: ask for a key with other models."
    shown = ", ".join(names[:_MOST_NAMES_IN_A_MESSAGE])
    more = len(names) - _MOST_NAMES_IN_A_MESSAGE
    return f"It may use: {shown}" + (f" and {more} more." if more > 0 else ".")
