"""The ledger as routes ask for it."""

from typing import Annotated

from fastapi import Depends

from tidegate.auth.dependencies import Caller
from tidegate.ledger.service import LedgerReader
from tidegate.storage.dependencies import ReadingSessionDep


def get_ledger_reader(session: ReadingSessionDep, caller: Caller) -> LedgerReader:
    return LedgerReader(session, caller)


LedgerReaderDep = Annotated[LedgerReader, Depends(get_ledger_reader)]
