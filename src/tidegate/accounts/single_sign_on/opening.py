"""Single sign-on of a process, opened and closed with it; nothing of it is imported where it is off."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx2

from tidegate.accounts.single_sign_on.service import OpenedProvider
from tidegate.auth.keyring import Keyring
from tidegate.mail.links import Links
from tidegate.settings import Settings

CALLBACK_PATH: Final = "/auth/sso/callback"


@asynccontextmanager
async def open_provider(
    settings: Settings, keyring: Keyring, client: httpx2.AsyncClient
) -> AsyncIterator[OpenedProvider | None]:
    """None where the settings name no provider. It is asked for nothing before somebody logs in."""
    chosen = settings.single_sign_on
    if chosen.issuer is None:
        yield None
        return
    from tidegate.accounts.single_sign_on.provider import Provider, refused_by_provider  # noqa: PLC0415 - start-up time
    from tidegate.accounts.single_sign_on.seals import Seals  # noqa: PLC0415 - start-up time

    base = Links(settings).base
    provider = Provider.of(client, chosen)
    try:
        yield OpenedProvider(
            settings=chosen,
            provider=provider,
            seals=Seals(keyring, bound_to=f"{chosen.issuer} {chosen.client_id}"),
            redirect_uri=None if base is None else f"{base}{CALLBACK_PATH}",
            refused_by_provider=refused_by_provider,
        )
    finally:
        await provider.aclose()
