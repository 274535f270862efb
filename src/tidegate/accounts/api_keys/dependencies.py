"""API keys as routes ask for them."""

import uuid
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.accounts.api_keys.service import CallersKeys
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import Caller
from tidegate.auth.keyring import Keyrings
from tidegate.auth.principal import Principal
from tidegate.errors import PermissionDenied
from tidegate.limits.dependencies import get_changed
from tidegate.limits.service import Changed
from tidegate.settings import Settings
from tidegate.storage.changes import Changes, key_topic
from tidegate.storage.dependencies import DatabaseDep


async def get_key_keeper(caller: Caller) -> Principal:
    """Who may see and keep API keys: a signed-in user, or a key with scope `manage`. Raises `PermissionDenied`."""
    if caller.key_id is not None and "manage" not in caller.scopes:
        raise PermissionDenied("This API key lacks the scope 'manage', which this route needs.")
    return caller


def get_key_changed(request: Request) -> Changed:
    """What tells every worker that a key changed, by its id."""
    changes: Changes = request.state.changes

    async def tell(key_id: uuid.UUID) -> None:
        await changes.tell(key_topic(key_id))

    return tell


def get_callers_keys(
    request: Request,
    database: DatabaseDep,
    caller: Annotated[Principal, Depends(get_key_keeper)],
    *,
    actor: ActorDep,
    key_changed: Annotated[Changed, Depends(get_key_changed)],
    limits_changed: Annotated[Changed, Depends(get_changed)],
) -> CallersKeys:
    keyrings: Keyrings = request.state.keyrings
    settings: Settings = request.state.settings
    return CallersKeys(
        database,
        keyrings.peppers,
        caller,
        actor,
        keys_per_member=settings.limits.keys_per_member,
        key_changed=key_changed,
        limits_changed=limits_changed,
    )


CallersKeysDep = Annotated[CallersKeys, Depends(get_callers_keys)]
