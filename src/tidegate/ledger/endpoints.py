"""What was requested and what became of it: the ledger's entries over HTTP."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Query

from tidegate.ledger.dependencies import LedgerReaderDep, UsageReaderDep
from tidegate.ledger.schemas import RequestEntry, RequestPage, RequestQuery, UsageQuery, UsageReport

router = APIRouter(prefix="/api", tags=["ledger"])


@router.get("/usage")
async def get_usage(ledger: UsageReaderDep, query: Annotated[UsageQuery, Query()]) -> UsageReport:
    """Totals of the ledger that the caller may see, at most ten seconds old."""
    return UsageReport.model_validate(await ledger.totals(query))


@router.get("/requests")
async def list_requests(ledger: LedgerReaderDep, query: Annotated[RequestQuery, Query()]) -> RequestPage:
    """Ledger entries that the caller may see, newest first, whole."""
    return await ledger.page(query)


@router.get("/requests/{entry_id}")
async def get_request(ledger: LedgerReaderDep, entry_id: uuid.UUID) -> RequestEntry:
    """One ledger entry with its attempts."""
    return await ledger.get(entry_id)
