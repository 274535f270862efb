"""The audit trail over HTTP. Who may call hangs on the route; what they see is the service's."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from tidegate.audit.dependencies import AuditReaderDep
from tidegate.audit.schemas import AuditPage, AuditQuery
from tidegate.auth.dependencies import RequireScope

router = APIRouter(prefix="/api/audit", tags=["audit"], dependencies=[Depends(RequireScope("manage"))])


@router.get("")
async def list_events(audit: AuditReaderDep, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """Who did what to whom, from where and when, newest first: what the caller may see."""
    return await audit.page(query)
