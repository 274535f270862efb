"""The gateway's app as the server makes it, watched for what blocks its loop: `--app` of warm test gateways."""

from pathlib import Path
from typing import Any

# By name, for the fork: the workers find it imported.
import tidegate.app  # noqa: F401
from tests.support.blocking import FILE, Findings, Guarded
from tidegate.server import opening

APP = f"{__name__}:create_app"


def create_app(*known: Any, **also_known: Any) -> Guarded:
    """What `opening.create_app` makes of what the server knows. The working directory is the gateway's folder."""
    return Guarded(opening.create_app(*known, **also_known), Findings(Path(FILE)))
