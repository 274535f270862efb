"""The contexts of TLS that the gateway speaks by: every one of ours is made here, and none speaks less than TLS 1.2.

What a context allows by default is for OpenSSL, its configuration and the Python of the machine to say: Debian 12's
own 3.11.2 allows TLS 1.0 (OWASP ASVS 5, 12.1.1). A test finds contexts, and clients that make their own, elsewhere.
"""

import ssl
from pathlib import Path
from typing import Final

LOWEST: Final = ssl.TLSVersion.TLSv1_2
_END: Final = "-----END CERTIFICATE-----"


def client_context() -> ssl.SSLContext:
    """For calling others: their certificate and its name are checked, by the system's authorities.

    It reads them, which takes 30 ms: not on a loop.
    """
    # The root makes no client, and does without.
    import httpx2  # noqa: PLC0415

    return _raised(httpx2.create_ssl_context(trust_env=False))


def server_context() -> ssl.SSLContext:
    """For being called; without a certificate yet. Of 1.2 only what keeps its secrets if the key is lost later.

    Nobody negotiates anew on a connection: a client could have that done at the server's cost.
    """
    context = _raised(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def own_context(certificate: Path | None) -> ssl.SSLContext:
    """For calling this very server: who has its certificate is it, by whatever name it is reached.

    Without one, whoever answers is believed: for questions that tell nothing. Raises `OSError` where the file is gone
    or holds no certificate.
    """
    context = _raised(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = False
    if certificate is None:
        context.verify_mode = ssl.CERT_NONE
        return context
    # Of a chain the first alone: whoever signed it has signed for others too.
    first = certificate.read_text("ascii", "replace").partition(_END)[0] + _END
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=first[max(first.find("-----BEGIN CERTIFICATE-----"), 0) :])
    return context


def _raised(context: ssl.SSLContext) -> ssl.SSLContext:
    # A system that asks for more is followed.
    context.minimum_version = max(context.minimum_version, LOWEST)
    return context
