"""The audit trail as routes ask for it: who acts, and its reading."""

from dataclasses import replace
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.audit.service import AuditReader
from tidegate.audit.trail import Actor
from tidegate.auth.dependencies import Caller
from tidegate.auth.principal import Principal
from tidegate.http.context import request_context
from tidegate.storage.dependencies import ReadingSessionDep


def actor_of(request: Request, caller: Principal | None) -> Actor:
    """The caller as the audit trail names them; `nobody` for a request without credentials."""
    context = request_context(request.scope)
    actor = Actor(
        "nobody",
        client_address=context.client_address,
        user_agent=context.user_agent,
        request_id=context.request_id,
    )
    if caller is None:
        return actor
    if caller.key_id is not None:
        return replace(actor, kind="key", id=caller.key_id, name=f"tg_{caller.key_prefix}")
    return replace(actor, kind="user", id=caller.user_id, name=caller.email)


def get_anyone(request: Request) -> Actor:
    """Whoever sent a request that needs no credentials."""
    return actor_of(request, None)


def get_actor(request: Request, caller: Caller) -> Actor:
    return actor_of(request, caller)


def get_audit_reader(session: ReadingSessionDep, caller: Caller) -> AuditReader:
    return AuditReader(session, caller)


AnyoneDep = Annotated[Actor, Depends(get_anyone)]
ActorDep = Annotated[Actor, Depends(get_actor)]
AuditReaderDep = Annotated[AuditReader, Depends(get_audit_reader)]
