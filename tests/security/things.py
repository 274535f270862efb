"""What a workspace holds, one of every kind that a route can name: found by the name of the parameter.

A route with a parameter that has no maker here fails the tests: whoever adds the route says what its parameter names.
"""

import secrets
import uuid
from dataclasses import dataclass
from typing import Any, Final

from tests.security.attacked import Attacked
from tests.security.routes import Parameter, Route
from tests.support.ledger_entries import an_entry
from tidegate.ledger.models import LedgerEntry

# Parameters that name nothing which a workspace has.
OF_NO_WORKSPACE: Final = {
    "model_id": "models are the deployment's",
    "action": "of the audit trail, a closed list",
    "since": "a time",
    "until": "a time",
    "tool_call_id": "the upstream's",
}


class NoMaker(AssertionError):
    """A route names something that these tests cannot make."""

    def __init__(self, route: Route, parameter: Parameter) -> None:
        super().__init__(
            f"{route} has a parameter {parameter.name!r}, and nothing here makes what it names. Add it to "
            "tests/security/things.py: to `make_things`, where it names something that belongs to a workspace, with "
            "the value that finds it; else to OF_NO_WORKSPACE, with the reason."
        )


@dataclass(frozen=True)
class Things:
    """`values` are by the names of parameters; with a path before it a name is that of one path's alone."""

    values: dict[str, str]

    def value(self, route: Route, parameter: Parameter) -> str:
        """What a parameter names here. Raises `NoMaker`."""
        value = self.values.get(f"{route.path} {parameter.name}", self.values.get(parameter.name))
        if value is None:
            raise NoMaker(route, parameter)
        return value


async def make_things(attacked: Attacked) -> Things:
    """One of everything in the workspace `research`, the victim's where it is somebody's."""
    victim = attacked.users["victim"]
    place = str(attacked.research)
    owned = {"owner": victim.email, "workspace_id": place}
    label = f"made-{secrets.token_hex(4)}"
    key = await _made(attacked, "/api/keys", {"name": "theirs", **owned}, **{"X-Request-ID": label})
    rotated = await _made(attacked, f"/api/keys/{key['id']}/rotate", {"overlap": "1h"})
    other = await _made(attacked, "/api/keys", {"name": "limited", **owned})
    invited = f"invited-{secrets.token_hex(4)}@example.com"
    invitation = await _made(attacked, "/api/invitations", {"email": invited, "workspace_id": place})
    counted = {"scope": "key", "subject": other["id"], "meter": "requests", "window": "day", "amount": 5}
    limit = await _made(attacked, "/api/limits", {**counted, "workspace_id": place})
    entry = await _entry(attacked, key["id"])
    return Things(
        {
            "key_id": key["id"],
            "prefix": rotated["prefix"],
            "key_prefix": other["prefix"],
            "owner": victim.email,
            "/api/keys/{key_id}/retiring/{prefix} prefix": key["prefix"],
            "invitation_id": invitation["id"],
            "email": invited,
            "/api/users email": victim.email,
            "/api/audit request_id": label,
            "limit_id": limit["id"],
            "subject": other["id"],
            "workspace_id": place,
            "name": "research",
            "user_id": str(victim.id),
            "sign_in_id": str((await attacked.begin("stranger")).sign_in_id),
            "entry_id": str(entry.entry_id),
            "subject_id": key["id"],
            "actor": victim.email,
            "after": str(entry.entry_id),
            **{name: str(getattr(entry, name)) for name in ("request_id", "model", "upstream", "end_user")},
            "session_id": str(entry.session_id),
        }
    )


def unknown_like(name: str, value: str) -> str:
    """What names nothing, and is of the same form and in the same place of any order."""
    try:
        return str(uuid.UUID(int=uuid.UUID(value).int ^ 1))
    except ValueError:
        pass
    if name in ("prefix", "key_prefix"):
        return value[:-1] + ("a" if value[-1] != "a" else "b")
    head, at, rest = value.partition("@")
    return f"{head[::-1]}0{at}{rest}" if at else value[::-1] + "0"


async def _made(attacked: Attacked, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = await attacked.call("POST", path, by="admin", json=body, headers=headers)
    assert answer.is_success, f"{path}: {answer.text}"
    made: dict[str, Any] = answer.json()
    return made


async def _entry(attacked: Attacked, key_id: str) -> LedgerEntry:
    mark = secrets.token_hex(4)
    said = an_entry(
        workspace_id=attacked.research,
        key_id=uuid.UUID(key_id),
        user_id=attacked.users["victim"].id,
        **{name: f"{name}-{mark}" for name in ("request_id", "model", "upstream", "end_user", "session_id")},
    )
    fields = {name: getattr(said, name) for name in said.__struct_fields__ if name in LedgerEntry.__table__.columns}
    async with attacked.database.transaction() as session:
        entry = LedgerEntry(**fields)
        session.add(entry)
    return entry
