"""What is read of a running application: routes as they are, however they came to be, and how lines are written."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import BaseModel, Field, PositiveInt, SecretStr

from tidegate.app import create_app
from tidegate.auth.dependencies import RequireScope, get_caller
from tidegate.lifespan.facts_of_routes import facts_of_routes
from tidegate.settings import Settings
from tidegate.settings.digests import settings_digests
from tidegate.settings.groups import AuthSettings, ServerSettings
from tidegate.settings.secrets import entropy_bits
from tidegate.telemetry.logging import configure_logging, form_of_lines


class Bounded(BaseModel):
    name: str = Field(max_length=10)
    amount: PositiveInt
    kind: Literal["a", "b"] = "a"
    parts: list[Annotated[str, Field(max_length=5)]] = Field(max_length=3)


class Loose(BaseModel):
    name: str
    amount: int
    parts: list[Bounded]
    notes: dict[str, int]
    rest: Any = None


def application(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(environment="test", data_dir=tmp_path)


def test_our_own_application_has_nothing_loose(settings: Settings) -> None:
    facts = facts_of_routes(application(settings))
    assert [facts[name] for name in ("loose", "overridden", "without_caller", "unconstrained")] == [[], [], [], []]
    assert facts["docs"] == ["/docs", "/openapi.json", "/redoc"]
    assert facts["streaming"] == ["POST /v1/chat/completions"]
    assert facts["limited"]["login"] == {"account": 10, "address": 30}
    assert {"login", "refresh", "forgot", "reset"} <= facts["limited"].keys()


def test_production_has_no_docs(settings: Settings) -> None:
    assert facts_of_routes(application(settings.model_copy(update={"environment": "production"})))["docs"] == []


def test_a_route_without_a_router_is_loose(settings: Settings) -> None:
    app = application(settings)
    app.add_api_route("/late", lambda: None)
    assert facts_of_routes(app)["loose"] == ["GET /late"]


def test_a_route_that_asks_for_no_caller_is_named(settings: Settings) -> None:
    app = application(settings)
    router = APIRouter()
    router.add_api_route("/api/open", lambda: None)
    router.add_api_route("/api/closed", lambda: None, dependencies=[Depends(RequireScope("manage"))])
    app.include_router(router)
    app.dependency_overrides[get_caller] = lambda: None
    facts = facts_of_routes(app)
    assert facts["without_caller"] == ["GET /api/open"]
    assert facts["overridden"] == ["get_caller"]


def test_fields_that_take_anything_are_named_each(settings: Settings) -> None:
    app = application(settings)
    router = APIRouter()

    def take(body: Loose, page: int, size: Annotated[int, Query(ge=1, le=100)] = 1) -> None:
        del body, page, size

    def take_bounded(body: Bounded) -> None:
        del body

    router.add_api_route("/loose", take, methods=["POST"])
    router.add_api_route("/bounded", take_bounded, methods=["POST"])
    app.include_router(router)
    assert facts_of_routes(app)["unconstrained"] == [
        "POST /loose: body.amount (any number)",
        "POST /loose: body.name (text of any length)",
        "POST /loose: body.notes (a mapping of any size)",
        "POST /loose: body.notes{} (any number)",
        "POST /loose: body.parts (a list of any length)",
        "POST /loose: body.rest (anything)",
        "POST /loose: page (any number)",
    ]


@pytest.mark.parametrize(
    ("secret", "bits"),
    [
        ("6f1d2c3b" * 8, 256),
        ("6f1d2c3b" * 7, 224),
        ("Kq7Zr2Xw9Lm4Tn8V" * 2, 192),
        ("0123456789" * 4, 132),
        ("Kq7Zr2Xw" * 5 + "A==", 246),
        ("", 0),
    ],
)
def test_a_secret_has_at_most_the_bits_of_its_alphabet(secret: str, bits: int) -> None:
    assert entropy_bits(secret) == bits


def test_digests_differ_by_group_and_say_no_secret(settings: Settings) -> None:
    auth = AuthSettings(jwt_keys=(("1", SecretStr("Kq7Zr2Xw9Lm4Tn8Vb3Hc5Jd1Pf6Ry0Gs")),))
    other = settings.model_copy(update={"auth": auth, "server": ServerSettings(port=9, workers=3)})
    mine, theirs = settings_digests(settings), settings_digests(other)
    assert {name for name in mine if mine[name] != theirs[name]} == {"auth"}
    assert "Kq7Zr2Xw" not in str(theirs)


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    own = {name: logging.getLogger(name).handlers for name in ("uvicorn", "uvicorn.error", "uvicorn.access")}
    yield
    root.handlers, root.level = handlers, level
    for name, kept in own.items():
        logging.getLogger(name).handlers = kept
    logging.captureWarnings(capture=False)


@pytest.mark.usefixtures("_logging_as_it_was")
def test_lines_are_tried_as_they_would_be_written(settings: Settings) -> None:
    root = logging.getLogger()
    root.handlers = []
    assert form_of_lines()["form"] == "none"
    configure_logging(settings, process="worker")
    told = {"handlers": 1, "loggers_with_their_own": [], "form": "json", "redacts": True, "process": "worker"}
    assert form_of_lines() == told
    handler = root.handlers[0]
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("uvicorn.access").addHandler(logging.NullHandler())
    told |= {"form": "other", "redacts": False, "loggers_with_their_own": ["uvicorn.access"]}
    assert form_of_lines() == told
