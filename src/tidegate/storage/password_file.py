"""A password that others change while the gateway runs: a vault's agent, Kubernetes, a cloud's tokens of minutes.

It stands in a file that is read for every new connection. Connections that stand are not concerned: PostgreSQL and
Redis ask for a password once. A file that cannot be used is a connection that cannot be made, and a line in the log.
"""

from functools import partial
from pathlib import Path

from tidegate.settings.references import resolve_secret
from tidegate.storage.one_reading import OneReading
from tidegate.telemetry.logging import get_logger

# A file of a volume that hangs must not hold up whoever waits for a connection.
READ_WITHIN_S = 2.0

log = get_logger(__name__)


class PasswordUnreadable(OSError):
    """There is no password to log in with. The message names the setting and the file, and nothing that is in it."""


class PasswordFile:
    """`setting` is the variable that names the file, for whoever reads the log.

    >>> password = PasswordFile(Path("/run/secrets/redis"), "TIDEGATE_REDIS__PASSWORD_FILE")
    >>> await password.read()
    """

    def __init__(self, path: Path, setting: str) -> None:
        self.setting = setting
        self._path = path
        # Told since it was last read: an outage has a line for each reason, not for each attempt.
        self._told: set[str] = set()
        self._reading = OneReading(partial(resolve_secret, f"file:{path}"))

    async def read(self) -> str:
        """The password of now, without the line end. Raises `PasswordUnreadable`. It is read beside the loop."""
        try:
            password = await self._reading.within(READ_WITHIN_S)
        except ValueError as error:
            reason = str(error)
        except TimeoutError:
            reason = f"{self._path} could not be read within {READ_WITHIN_S:g} s"
        else:
            self._told.clear()
            return password
        if reason not in self._told:
            self._told.add(reason)
            log.warning("password_file_unusable", setting=self.setting, reason=reason)
        raise PasswordUnreadable(f"{self.setting}: {reason}")
