"""The certificate that the server shows, with its key: read from two files, judged, and renewed while it serves.

A pair is judged before anything else knows of it, so a bad one changes nothing. Who shakes hands is given the pair that
is in force then; connections that stand keep theirs. No text of a key is in what is told.
"""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.settings.groups import ServerSettings
from tidegate.tls import server_context

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CERTIFICATE = "TIDEGATE_SERVER__TLS_CERTIFICATE"
KEY = "TIDEGATE_SERVER__TLS_KEY"
_NO_CERTIFICATE = "holds no certificate in PEM's form (BEGIN CERTIFICATE)"
# Without the dashes: a log takes out all that follows them.
_NO_KEY = "holds no private key in PEM's form (BEGIN PRIVATE KEY)"
# The last where the one is RSA's and the other is not.
_NOT_ITS_KEY = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_SOON = timedelta(days=14)


class CertificateError(Exception):
    """The pair cannot be shown; `fault` is the line that says why, with the variable."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate that was judged, with its key in the context: the names in it, and until when it is valid."""

    context: ssl.SSLContext
    path: Path
    names: tuple[str, ...]
    until: datetime

    @property
    def day(self) -> str:
        return self.until.date().isoformat()

    @property
    def ends_soon(self) -> bool:
        return self.until - datetime.now(UTC) < _SOON


class Entrance:
    """The way in by TLS. `context` stays the same for as long as the server listens; what it shows changes.

    >>> entrance = entrance_of(settings.server)
    >>> config = uvicorn_config(app, settings, entrance)
    >>> entrance.use(await entrance.read())
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises `CertificateError`."""
        self._paths = certificate, key
        self._seen = self._stamps()
        self.pair = read_pair(certificate, key)
        self.context = server_context()
        # OpenSSL asks in every handshake, also where the client names no server.
        self.context.sni_callback = self._show

    async def read(self) -> Pair:
        """The pair as it is on disk now. Raises `CertificateError`."""
        return await asyncio.to_thread(read_pair, *self._paths)

    def read_waiting(self) -> Pair:
        """The same where there is no loop."""
        return read_pair(*self._paths)

    def use(self, pair: Pair) -> None:
        self.pair = pair

    def keep_up(self) -> None:
        """Takes the pair on disk where that has changed and is good: for a process that no reload reaches.

        Whoever is forked from it has the last good one, also where a bad one is on disk by then.
        """
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            with contextlib.suppress(CertificateError):
                self.use(self.read_waiting())

    def _stamps(self) -> list[tuple[int, ...]]:
        stamps: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                found = path.stat()
                stamps.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
            except OSError:
                stamps.append(())
        return stamps

    def _show(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        del name
        connection.context = self.pair.context


def entrance_of(server: ServerSettings) -> Entrance | None:
    """None where the server speaks no TLS. Raises `CertificateError`."""
    if server.tls_certificate is None or server.tls_key is None:
        return None
    return Entrance(server.tls_certificate, server.tls_key)


def pair_of(server: ServerSettings) -> Pair | None:
    """The pair of these settings, None where there is to be none. Raises `CertificateError`."""
    if server.tls_certificate is None or server.tls_key is None:
        return None
    return read_pair(server.tls_certificate, server.tls_key)


async def shown_pair(server: ServerSettings) -> Pair | None:
    """For telling of it; None too where it has become a bad one, which is told where it is to be shown."""
    try:
        return await asyncio.to_thread(pair_of, server)
    except CertificateError:
        return None


def read_pair(certificate: Path, key: Path) -> Pair:
    """Raises `CertificateError`: one of them cannot be read, is none, is not the other's, or its time is not now."""
    # It takes 30 ms, and only who speaks TLS needs it.
    from cryptography import x509  # noqa: PLC0415

    text = _read(CERTIFICATE, certificate)
    _read(KEY, key)
    try:
        first = x509.load_pem_x509_certificates(text)[0]
    except ValueError:
        raise CertificateError(f"{CERTIFICATE}: {certificate} {_NO_CERTIFICATE}") from None
    begins, until = first.not_valid_before_utc, first.not_valid_after_utc
    now = datetime.now(UTC)
    if until <= now:
        raise CertificateError(f"{CERTIFICATE}: the certificate in {certificate} ended on {until:%Y-%m-%d}: renew it")
    if begins > now:
        told = f"is valid from {begins:%Y-%m-%d %H:%M} UTC: look at this machine's clock"
        raise CertificateError(f"{CERTIFICATE}: the certificate in {certificate} {told}")
    context = server_context()
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise CertificateError(_fault(error, certificate, key)) from None
    except OSError as error:
        # It was there just now.
        raise CertificateError(f"{CERTIFICATE}: {certificate} cannot be read: {error.strerror or error}") from None
    return Pair(context, certificate, _names(first), until)


def _names(certificate: "Certificate") -> tuple[str, ...]:
    """Whom it speaks for; addresses are written out."""
    from cryptography import x509  # noqa: PLC0415

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def _read(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{variable}: {path} cannot be read: {error.strerror or error}") from None


def _no_passphrase() -> str:
    # Without this OpenSSL asks for it at the terminal, and waits.
    raise CertificateError(f"{KEY}: the key has a passphrase, which nobody enters at a start: store it without one")


def _fault(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    """OpenSSL's reasons are words of its own, never of the files."""
    if error.reason in _NOT_ITS_KEY:
        return f"{KEY}: the key in {key} is not that of the certificate in {certificate}: renew both together"
    if "TOO_SMALL" in (error.reason or ""):
        return f"{CERTIFICATE}: {certificate} is too weak for OpenSSL ({error.reason}): have a stronger one issued"
    return f"{KEY}: {key} {_NO_KEY}"
