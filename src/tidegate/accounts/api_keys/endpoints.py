"""API keys over HTTP. Who may call hangs on the router; whose keys they may change is the service's."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response, status

from tidegate.accounts.api_keys.dependencies import CallersKeysDep, get_key_keeper
from tidegate.accounts.api_keys.schemas import (
    ChangedKey,
    KeyForm,
    KeyPage,
    KeyQuery,
    KeyView,
    KeyWithSecret,
    Rotation,
)

router = APIRouter(prefix="/api/keys", tags=["keys"], dependencies=[Depends(get_key_keeper)])


SecretPrefix = Annotated[str, Path(pattern=r"^(tg_)?[a-z0-9]{8}$", max_length=11)]


def _never_stored(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


NEVER_STORED = [Depends(_never_stored)]


@router.get("")
async def list_keys(keys: CallersKeysDep, query: Annotated[KeyQuery, Query()]) -> KeyPage:
    """API keys that the caller may see, newest first, with their own limits. Secrets are not kept, so none is shown."""
    return await keys.page(query)


@router.post("", status_code=status.HTTP_201_CREATED, dependencies=NEVER_STORED)
async def create_key(keys: CallersKeysDep, body: KeyForm) -> KeyWithSecret:
    """Creates an API key and its limits, at once. Its secret is in this answer alone."""
    return await keys.create(body)


@router.patch("/{key_id}")
async def change_key(keys: CallersKeysDep, key_id: uuid.UUID, body: ChangedKey) -> KeyView:
    """Changes a key's name, models, expiry, allowed addresses, or whether its attribution is trusted.

    It holds within a second.
    """
    return await keys.change(key_id, body)


@router.post("/{key_id}/rotate", dependencies=NEVER_STORED)
async def rotate_key(keys: CallersKeysDep, key_id: uuid.UUID, body: Rotation | None = None) -> KeyWithSecret:
    """Gives a key a new secret and prefix. The old secret goes on for the overlap; without one all others end.

    They end within a second.
    """
    return await keys.rotate(key_id, body or Rotation())


@router.delete("/{key_id}/retiring/{prefix}", status_code=status.HTTP_204_NO_CONTENT)
async def end_retiring_secret(keys: CallersKeysDep, key_id: uuid.UUID, prefix: SecretPrefix) -> None:
    """Ends a secret that a rotation left working, within a second. The key goes on."""
    await keys.end_retiring(key_id, prefix)


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
async def revoke_key(keys: CallersKeysDep, key_id: uuid.UUID) -> None:
    """Ends a key within a second, for good. Its row and what it spent stay."""
    await keys.revoke(key_id)
