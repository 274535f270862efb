"""Sign-ins as routes ask for them."""

import uuid
from datetime import timedelta
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.sign_ins.service import Client, SignIns
from tidegate.auth.authenticator import Authenticator
from tidegate.limits.service import Changed
from tidegate.settings import Settings
from tidegate.storage.changes import Changes, user_topic
from tidegate.storage.dependencies import DatabaseDep


def get_user_changed(request: Request) -> Changed:
    """What tells every worker that a user changed, or a sign-in of theirs, by the user's id."""
    changes: Changes = request.state.changes

    async def tell(user_id: uuid.UUID) -> None:
        await changes.tell(user_topic(user_id))

    return tell


UserChangedDep = Annotated[Changed, Depends(get_user_changed)]


def get_sign_ins(request: Request, database: DatabaseDep, changed: UserChangedDep) -> SignIns:
    authenticator: Authenticator = request.state.authenticator
    settings: Settings = request.state.settings
    lifetime = timedelta(days=settings.auth.sign_in_days)
    idle = timedelta(days=settings.auth.sign_in_idle_days)
    return SignIns(database, authenticator.tokens, lifetime=lifetime, idle=idle, changed=changed)


def get_client(request: Request) -> Client:
    return Client.of(request)


def never_stored(response: Response) -> None:
    """What a route answers is in no cache (RFC 6749, 5.1; RFC 9111, 5.2.2.5)."""
    response.headers["Cache-Control"] = "no-store"


SignInsDep = Annotated[SignIns, Depends(get_sign_ins)]
ClientDep = Annotated[Client, Depends(get_client)]
