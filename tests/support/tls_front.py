"""A front that speaks TLS for a real PostgreSQL, with a certificate of the test's choice, or refuses to speak it.

PostgreSQL's own answer to who asks for TLS is one byte, `S` or `N` (its manual, 55.2.13); behind that it is the real
server that answers. Certificates are made here, each its own authority.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.services import LOOPBACK

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


@dataclass(frozen=True)
class Certificate:
    """A file of the certificate, which is its own authority, and one of its key."""

    path: Path
    key_path: Path


def certificate_for(name: str, folder: Path, *, since_days: float = 1, until_days: float = 1) -> Certificate:
    """A certificate for a host's name or address, in files of `folder`: valid since, and until, so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    try:
        named: x509.GeneralName = x509.IPAddress(ip_address(name))
    except ValueError:
        named = x509.DNSName(name)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=since_days))
        .not_valid_after(now + timedelta(days=until_days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    made.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made.key_path.write_bytes(key.private_bytes(*form))
    return made


@dataclass
class TlsFront:
    """Where it listens, and the version of TLS that each connection came to speak, None for one in the clear."""

    port: int = 0
    spoken: list[str | None] = field(default_factory=list)


@asynccontextmanager
async def tls_front(port: int, certificate: Certificate | None) -> AsyncIterator[TlsFront]:
    """In front of the PostgreSQL on `port`. Without a certificate it speaks no TLS."""
    front = TlsFront()
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.path, certificate.key_path)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Who refuses the certificate, or goes, leaves in the middle.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            first = await reader.readexactly(8)
            if first == _SSL_REQUEST:
                writer.write(b"N" if context is None else b"S")
                await writer.drain()
                if context is not None:
                    await writer.start_tls(context)
                first = await reader.readexactly(8)
            spoken = writer.get_extra_info("ssl_object")
            front.spoken.append(None if spoken is None else spoken.version())
            behind_reader, behind_writer = await asyncio.open_connection(LOOPBACK, port)
            with contextlib.closing(behind_writer):
                behind_writer.write(first)
                ways = (_carry(reader, behind_writer), _carry(behind_reader, writer))
                tasks = [asyncio.ensure_future(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
        await server.wait_closed()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
