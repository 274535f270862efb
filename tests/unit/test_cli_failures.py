"""What a command says of an error: expected ones in a line each, a defect not at all."""

import socket
import sqlite3

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tidegate.cli.failures import failure_lines
from tidegate.errors import NotFound
from tidegate.settings import SettingsError
from tidegate.storage.migrate import MigrationFailed, SchemaBehind


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 5432)"),
        socket.gaierror(-2, "Name or service not known"),
        TimeoutError(),
        PoolTimeout("QueuePool limit of size 1 overflow 1 reached"),
        OperationalError("SELECT 1", {"secret": "s3cret-word"}, sqlite3.OperationalError("disk I/O error")),
        ProgrammingError("SELECT 's3cret-word'", None, sqlite3.ProgrammingError("no such thing")),
    ],
)
def test_a_database_that_fails_is_one_line_that_says_what_to_check(error: Exception) -> None:
    (line,) = failure_lines(error) or []
    assert "check TIDEGATE_DATABASE__URL" in line
    assert "s3cret-word" not in line
    assert "\n" not in line


def test_each_fault_of_the_settings_is_a_line() -> None:
    assert failure_lines(SettingsError(["A: wrong", "B: wrong"])) == ["A: wrong", "B: wrong"]


def test_what_a_feature_says_is_said() -> None:
    assert failure_lines(NotFound("There is no key.")) == ["There is no key."]
    assert failure_lines(MigrationFailed("the database is locked")) == ["The database is locked"]
    assert "tidegate migrate" in str(failure_lines(SchemaBehind(["0001"])))


def test_a_file_that_fails_is_named() -> None:
    assert failure_lines(PermissionError(13, "Permission denied", "first-key")) == ["first-key: Permission denied"]


def test_a_defect_is_none() -> None:
    assert failure_lines(ValueError("a defect")) is None
    assert failure_lines(AttributeError("a defect")) is None
