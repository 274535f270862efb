"""What a command says when what it needs is not so: each fault one line that tells what to do."""

import socket
import ssl

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tidegate.errors import TidegateError
from tidegate.routing.configuration import CatalogueError
from tidegate.settings import SettingsError
from tidegate.storage.migrate import MigrationFailed, SchemaBehind


def failure_lines(error: Exception) -> list[str] | None:
    """The lines for an error that is expected, None for one that is a defect. No line holds a URL or a parameter."""
    match error:
        case SettingsError() | CatalogueError():
            return error.faults
        case TidegateError():
            return [error.message]
        case MigrationFailed() | SchemaBehind():
            return [_sentence(str(error))]
        case ssl.SSLError():
            return [_untrusted(error)]
        # Refused, unknown host, no answer in time; asyncpg's own errors come unwrapped while it connects.
        case ConnectionError() | socket.gaierror() | TimeoutError() | PoolTimeout():
            return [_unreachable(error)]
        case asyncpg.PostgresError() | asyncpg.InterfaceError():
            return [_unreachable(error)]
        case DBAPIError() if error.orig is not None:
            return [_unreachable(error.orig)]
        case SQLAlchemyError():
            return None
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return [f"{where}{error.strerror or error}"]
    return None


def _unreachable(error: BaseException) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"The database cannot be used ({reason[0] if reason else type(error).__name__}): "
        "check TIDEGATE_DATABASE__URL, and that the database runs."
    )


def _untrusted(error: ssl.SSLError) -> str:
    reason = getattr(error, "verify_message", None) or error.reason or "no TLS that both speak"
    return (
        f"The database's server cannot be trusted ({reason}): check TIDEGATE_DATABASE__CA_FILE, and that the "
        "certificate names the host of TIDEGATE_DATABASE__URL."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
