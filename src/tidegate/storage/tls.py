"""TLS to the stores: what a server has to show, what it is shown, and the context that says both.

`verify` is what proves that the database is the one that is meant (OWASP ASVS 5, 12.3.2): its certificate is signed by
an authority that is trusted, and names the host of the URL. `require` keeps out who only listens. Neither goes on in
the clear where the server speaks no TLS; without a choice the URL's own `ssl` decides, and without that asyncpg tries
TLS and goes on without. No context speaks less than TLS 1.2, whatever the system's own defaults are.

Certificates are renewed while we run. So a context is made anew where a file that it was made of has changed: who
connects asks for the one of now, and connections that stand keep theirs.
"""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from tidegate.settings.groups import DatabaseSettings
from tidegate.storage.one_reading import OneReading
from tidegate.telemetry.logging import get_logger

MINIMUM_VERSION = ssl.TLSVersion.TLSv1_2
# A file of a volume that hangs must not hold up whoever waits for a connection.
_READ_WITHIN_S = 2.0

log = get_logger(__name__)


class TlsFilesUnusable(OSError):
    """A certificate, its key or an authority cannot be read, or is none. The message names the files."""


class Tls:
    """A context and the files that it is made of.

    >>> tls = Tls(ssl.create_default_context, [settings.redis.ca_file])
    >>> await asyncio.open_connection(host, port, ssl=await tls.current())
    """

    def __init__(self, make: Callable[[], ssl.SSLContext], files: Sequence[Path] = ()) -> None:
        self._make = make
        self._files = tuple(files)
        # With what the files were when they were read.
        self._made: tuple[object, ssl.SSLContext] | None = None
        # Told since they last were of use: a line for each reason, not for each connection.
        self._told: set[str] = set()
        self._reading = OneReading(self.get)

    async def current(self) -> ssl.SSLContext:
        """The context of the files as they are now. Raises `TlsFilesUnusable`.

        They are read beside the loop.
        """
        if self._made is not None and not self._files:
            return self._made[1]
        try:
            return await self._reading.within(_READ_WITHIN_S)
        except TimeoutError:
            raise self._unusable(f"could not be read within {_READ_WITHIN_S:g} s") from None

    def get(self) -> ssl.SSLContext:
        """`current`, for who may wait for a disk."""
        try:
            # Before they are read: what changes meanwhile is read again the next time.
            seen = [_state_of(path) for path in self._files]
            made = self._made
            if made is not None and made[0] == seen:
                return made[1]
            context = self._make()
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from None
        # Python 3.11's own default on Debian 12 would speak 1.0.
        context.minimum_version = max(context.minimum_version, MINIMUM_VERSION)
        self._made = (seen, context)
        self._told.clear()
        return context

    def _unusable(self, why: str) -> TlsFilesUnusable:
        reason = f"{', '.join(map(str, self._files))}: {why}"
        if reason not in self._told:
            self._told.add(reason)
            log.warning("tls_files_unusable", reason=reason)
        return TlsFilesUnusable(reason)


# As a connection takes it: None leaves it to the URL.
ConnectTls = Tls | Literal[False] | None


def database_tls(chosen: DatabaseSettings) -> ConnectTls:
    """What connections to PostgreSQL are made with."""
    if chosen.tls is None:
        return None
    if chosen.tls == "off":
        return False
    files = [path for path in (chosen.ca_file, chosen.cert_file, chosen.key_file) if path is not None]
    return Tls(lambda: _context(chosen), files)


def _context(chosen: DatabaseSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if chosen.ca_file is None else str(chosen.ca_file))
    if chosen.tls == "require":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if chosen.cert_file is not None:
        # A key that came to have a passphrase is refused; OpenSSL would ask for it at the terminal.
        context.load_cert_chain(chosen.cert_file, chosen.key_file, password="")
    return context


def _state_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
