"""Limits for tests: a whole one from the fields that matter."""

import uuid
from typing import Any

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.ledger.entry import new_entry_id
from tidegate.limits.values import Limit


def a_limit(**fields: Any) -> Limit:
    """60 requests a minute of each key, unless `fields` say otherwise."""
    whole: dict[str, Any] = {
        "id": new_entry_id(),
        "workspace_id": DEFAULT_WORKSPACE_ID,
        "scope": "key",
        "subject": None,
        "model": None,
        "meter": "requests",
        "window": "minute",
        "zone": None,
        "amount": 60,
        "action": "refuse",
        "on_overrun": "finish",
    }
    return Limit(**whole | {k: str(v) if k == "subject" and isinstance(v, uuid.UUID) else v for k, v in fields.items()})
