"""The ledger as routes ask for it."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.auth.dependencies import Caller
from tidegate.ledger.service import LedgerReader, UsageReader
from tidegate.storage.dependencies import DatabaseDep, ReadingSessionDep
from tidegate.storage.read_through import ReadThrough


def get_ledger_reader(session: ReadingSessionDep, caller: Caller) -> LedgerReader:
    return LedgerReader(session, caller)


def get_read_through(request: Request) -> ReadThrough:
    cache: ReadThrough = request.state.read_through
    return cache


def get_usage_reader(
    database: DatabaseDep, cache: Annotated[ReadThrough, Depends(get_read_through)], caller: Caller
) -> UsageReader:
    return UsageReader(database, cache, caller)


LedgerReaderDep = Annotated[LedgerReader, Depends(get_ledger_reader)]
UsageReaderDep = Annotated[UsageReader, Depends(get_usage_reader)]
