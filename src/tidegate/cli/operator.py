"""Who runs a command, as the audit trail names them."""

import os
import pwd

from tidegate.audit.trail import Actor


def operator() -> Actor:
    """The system's user behind this process, by name; by number where the system has no name for it."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return Actor("command", name=name)
