"""Limits as routes ask for them."""

from collections.abc import Collection
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import Caller
from tidegate.auth.principal import Principal
from tidegate.errors import PermissionDenied
from tidegate.limits.service import Changed, Limits, nothing_changed
from tidegate.routing.catalogue import Catalogue
from tidegate.storage.dependencies import DatabaseDep


def get_upstream_names(request: Request) -> Collection[str]:
    """The upstreams that the catalogue has now."""
    catalogue: Catalogue = request.state.gateway.serving.catalogue
    return catalogue.upstreams


def get_changed(request: Request) -> Changed:
    """Whom a change of limits is told to: the state's `limits_changed`, where the process has one."""
    changed: Changed = getattr(request.state, "limits_changed", nothing_changed)
    return changed


async def get_reading_caller(caller: Caller) -> Principal:
    """Who may read limits: a signed-in user, or a key with scope `manage`. Raises `PermissionDenied`."""
    if caller.key_id is not None and "manage" not in caller.scopes:
        raise PermissionDenied("This API key lacks the scope 'manage', which this route needs.")
    return caller


def get_limits(
    database: DatabaseDep,
    caller: Annotated[Principal, Depends(get_reading_caller)],
    actor: ActorDep,
    *,
    upstreams: Annotated[Collection[str], Depends(get_upstream_names)],
    changed: Annotated[Changed, Depends(get_changed)],
) -> Limits:
    return Limits(database, caller, actor, upstreams=upstreams, changed=changed)


LimitsDep = Annotated[Limits, Depends(get_limits)]
