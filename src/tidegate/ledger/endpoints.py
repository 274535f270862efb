"""What was requested and what became of it: the ledger's entries over HTTP."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Query

from tidegate.ledger.dependencies import LedgerReaderDep
from tidegate.ledger.schemas import RequestEntry, RequestPage, RequestQuery

router = APIRouter(prefix="/api", tags=["ledger"])


@router.get("/requests")
async def list_requests(ledger: LedgerReaderDep, query: Annotated[RequestQuery, Query()]) -> RequestPage:
    """Ledger entries that the caller may see, newest first, whole."""
    return await ledger.page(query)


@router.get("/requests/{entry_id}")
async def get_request(ledger: LedgerReaderDep, entry_id: uuid.UUID) -> RequestEntry:
    """One ledger entry with its attempts."""
    return await ledger.get(entry_id)
