"""Who runs a command: what they may do, and how the audit trail names them."""

import os
import pwd
from typing import Final

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.audit.trail import Actor
from tidegate.auth.principal import Principal

# Whoever runs the command may do what an admin may.
OPERATOR: Final = Principal(workspace_id=DEFAULT_WORKSPACE_ID, role="admin", scopes=frozenset({"manage"}))


def operator() -> Actor:
    """The system's user behind this process, by name; by number where the system has no name for it."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return Actor("command", name=name)
