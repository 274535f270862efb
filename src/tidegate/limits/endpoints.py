"""Limits and key policies over HTTP."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Query, status

from tidegate.auth.dependencies import RequireScope
from tidegate.limits.dependencies import LimitsDep
from tidegate.limits.schemas import ChangedLimit, KeyPolicies, LimitPage, LimitQuery, LimitView, NewLimit

router = APIRouter(prefix="/api/limits", tags=["limits"])
MANAGERS = [Depends(RequireScope("manage"))]


@router.get("")
async def list_limits(limits: LimitsDep, query: Annotated[LimitQuery, Query()]) -> LimitPage:
    """Limits that the caller may see, newest first."""
    return await limits.page(query)


@router.post("", status_code=status.HTTP_201_CREATED, dependencies=MANAGERS)
async def create_limit(limits: LimitsDep, body: NewLimit) -> LimitView:
    """Creates a limit. It holds within seconds."""
    return await limits.create(body)


@router.get("/key-policies")
async def list_key_policies(limits: LimitsDep, workspace_id: uuid.UUID | None = None) -> KeyPolicies:
    """What a workspace says of keys that its members make."""
    return await limits.policies(workspace_id)


@router.put("/key-policies", dependencies=MANAGERS)
async def replace_key_policies(
    limits: LimitsDep, body: KeyPolicies, workspace_id: uuid.UUID | None = None
) -> KeyPolicies:
    """Sets all of a workspace's key policies at once."""
    return await limits.replace_policies(body, workspace_id)


# By an id's own form: else `/key-policies` would be one, and a wrong method there a wrong id.
@router.patch("/{limit_id:uuid}", dependencies=MANAGERS)
async def change_limit(limits: LimitsDep, limit_id: uuid.UUID, body: ChangedLimit) -> LimitView:
    """Changes a limit's amount, action or on_overrun."""
    return await limits.change(limit_id, body)


@router.delete("/{limit_id:uuid}", status_code=status.HTTP_204_NO_CONTENT, dependencies=MANAGERS)
async def delete_limit(limits: LimitsDep, limit_id: uuid.UUID) -> None:
    """Ends a limit."""
    await limits.delete(limit_id)
