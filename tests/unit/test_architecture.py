"""The repository keeps its own rules, and the program that says so fails on each kind of bad sample."""

from pathlib import Path

import pytest

from tests.support.architecture import FLOORS, MAXIMUM_FUNCTION_LINES, MAXIMUM_LINES, Source, faults, floor_of

ROOT = Path(__file__).resolve().parents[2]
DOCSTRING = '"""What it owns."""\n'


def _sources() -> list[Source]:
    return [
        Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
        for folder in ("src", "tests", "benchmarks", "preflight")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("source", _sources(), ids=lambda source: source.path)
def test_the_file_keeps_the_rules(source: Source) -> None:
    assert not faults(source), "\n".join(faults(source))


def test_the_repository_was_found() -> None:
    assert {"src/tidegate/settings/loading.py", "tests/conftest.py"} <= {source.path for source in _sources()}


def test_each_floor_has_its_modules() -> None:
    modules = {
        0: ["tidegate", "tidegate.errors", "tidegate.settings"],
        1: ["tidegate.storage.database", "tidegate.telemetry.logging"],
        2: [
            "tidegate.http.context",
            "tidegate.routing.plan",
            "tidegate.auth",
            "tidegate.ledger.journal",
            "tidegate.accounts.service",
        ],
        3: ["tidegate.inference.flow", "tidegate.inference.relay"],
        4: ["tidegate.inference.endpoints", "tidegate.accounts.endpoints", "tidegate.telemetry.endpoints"],
        5: ["tidegate.app", "tidegate.lifespan", "tidegate.http.access", "tidegate.http"],
        6: ["tidegate.cli.main", "tidegate.server.worker", "tidegate.storage.migrations.env"],
    }
    assert {name: floor_of(name) for names in modules.values() for name in names} == {
        name: floor for floor, names in modules.items() for name in names
    }
    assert {floor for _, floor in FLOORS} == set(modules)


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("src/tidegate/settings/loading.py", "from tidegate.storage.database import Database"),
        ("src/tidegate/storage/database.py", "import tidegate.ledger.models"),
        ("src/tidegate/ledger/service.py", "from tidegate.inference.flow import run"),
        ("src/tidegate/ledger/service.py", "from tidegate import inference"),
        ("src/tidegate/ledger/service.py", "from ..inference import flow"),
        ("src/tidegate/ledger/service.py", "from tidegate.ledger import endpoints"),
        ("src/tidegate/ledger/service.py", "def later():\n    from tidegate.app import create_app"),
        ("src/tidegate/inference/flow.py", "from tidegate.http.access import AccessLine"),
        ("src/tidegate/inference/endpoints.py", "from tidegate.app import create_app"),
        ("src/tidegate/app.py", "from tidegate.server.worker import Worker"),
        ("src/tidegate/http/__init__.py", "from . import context\nfrom ..cli import main"),
        ("src/tidegate/attic/thing.py", "x = 1"),
        ("src/tidegate/app.py", "import preflight.checks"),
        ("preflight/src/preflight/checks.py", "from tidegate.settings import Settings"),
    ],
)
def test_an_import_upward_is_a_fault(path: str, statement: str) -> None:
    assert len(faults(Source(path, DOCSTRING + statement))) == 1


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("src/tidegate/ledger/service.py", "from tidegate.storage.database import Database\nimport tidegate.errors"),
        ("src/tidegate/ledger/service.py", "from tidegate.ledger.models import Row\nfrom . import entry"),
        ("src/tidegate/ledger/service.py", "from tidegate.http.context import RequestContext"),
        ("src/tidegate/ledger/service.py", "from tidegate.http import context"),
        ("src/tidegate/inference/endpoints.py", "from tidegate.http.routes import RawRoute"),
        ("src/tidegate/app.py", "from tidegate.inference.endpoints import router"),
        ("src/tidegate/storage/migrations/env.py", "from tidegate.ledger.models import Base"),
    ],
)
def test_an_import_downward_is_none(path: str, statement: str) -> None:
    assert faults(Source(path, DOCSTRING + statement)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import os\nHOME = os.environ['HOME']",
        "import os\ndef f():\n    return os.getenv('HOME')",
        "from os import environ",
        "from starlette.middleware.base import BaseHTTPMiddleware",
        "import starlette.middleware.base as b\nclass M(b.BaseHTTPMiddleware): ...",
        "def install(app):\n    @app.middleware('http')\n    async def m(request, call_next): ...",
        "from fastapi import FastAPI\napp = FastAPI()",
        "import httpx2\nclient: httpx2.AsyncClient = httpx2.AsyncClient()",
        "import sqlalchemy\nengine = sqlalchemy.create_engine('sqlite://')",
        "import redis\ntry:\n    store = redis.asyncio.Redis.from_url('redis://')\nexcept OSError:\n    raise",
        "import asyncio\nlock = asyncio.Lock()",
        "seen = {}",
        "seen: set[str] = set()",
        "from collections import deque\nqueue = deque()",
        "COUNT = 0\ndef f():\n    global COUNT\n    COUNT += 1",
    ],
)
def test_what_happens_at_import_or_behind_the_settings_is_a_fault(statement: str) -> None:
    assert len(faults(Source("src/tidegate/app.py", DOCSTRING + statement))) >= 1


@pytest.mark.parametrize(
    "statement",
    [
        "from fastapi import APIRouter\nrouter = APIRouter()",
        "import logging\nlogger = logging.getLogger(__name__)",
        "TABLE = {400: 'invalid_request_error'}\n__all__ = ['TABLE']",
        "from fastapi import FastAPI\ndef create_app() -> FastAPI:\n    return FastAPI()",
        "class Thing:\n    def __init__(self):\n        self.seen = {}",
        "if __name__ == '__main__':\n    app = create_app()",
    ],
)
def test_what_only_defines_is_none(statement: str) -> None:
    assert faults(Source("src/tidegate/app.py", DOCSTRING + statement)) == []


@pytest.mark.parametrize("folder", ["src/tidegate/cli", "tests/unit", "benchmarks"])
def test_a_long_file_or_function_is_a_fault(folder: str) -> None:
    long_file = DOCSTRING + "X = 1\n" * MAXIMUM_LINES
    long_function = DOCSTRING + "def f():\n" + "    pass\n" * MAXIMUM_FUNCTION_LINES
    long_coroutine = long_function.replace("def", "async def")
    for text in (long_file, long_function, long_coroutine):
        assert len(faults(Source(f"{folder}/thing.py", text))) == 1
    shorter = DOCSTRING + "def f():\n" + "    pass\n" * (MAXIMUM_FUNCTION_LINES - 1)
    assert faults(Source(f"{folder}/thing.py", shorter)) == []


def test_a_revision_of_the_schema_may_be_long() -> None:
    assert faults(Source("src/tidegate/storage/migrations/versions/0001_first.py", "X = 1\n" * 1000)) == []


@pytest.mark.parametrize("name", ["utils", "http_helpers", "manager", "data", "core", "common", "process"])
def test_a_name_that_says_nothing_is_a_fault(name: str) -> None:
    assert len(faults(Source(f"src/tidegate/auth/{name}.py", DOCSTRING))) == 1
    assert len(faults(Source(f"src/tidegate/auth/{name}/keys.py", DOCSTRING))) == 1


def test_a_module_without_a_docstring_is_a_fault() -> None:
    for path in ("src/tidegate/auth/keys.py", "benchmarks/run.py", "tests/support/waiting.py"):
        assert len(faults(Source(path, "X = 1\n"))) == 1
    assert faults(Source("src/tidegate/auth/__init__.py", "")) == []
