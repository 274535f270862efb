"""TLS to the database: whether it is spoken, and what the server has to show.

`verify` is what proves that the server is the one that is meant (OWASP ASVS 5, 12.3.2): its certificate is signed by an
authority that is trusted, and names the host of the URL. `require` keeps out who only listens. Neither goes on in the
clear where the server speaks no TLS; without a choice the URL's own `ssl` decides, and without that asyncpg tries TLS
and goes on without.
"""

import ssl
from typing import Literal

from tidegate.settings.groups import DatabaseSettings

# As asyncpg takes it: None leaves it to the URL.
ConnectTls = ssl.SSLContext | Literal[False] | None


def database_tls(chosen: DatabaseSettings) -> ConnectTls:
    """What a connection is made with. Raises `OSError` where the authority's file is gone since the settings were read.

    >>> engine = create_engine(url, tls=database_tls(settings.database))
    """
    if chosen.tls is None:
        return None
    if chosen.tls == "off":
        return False
    # Of Python's own defaults: TLS 1.2 at least, the certificate and its name checked.
    context = ssl.create_default_context(cafile=None if chosen.ca_file is None else str(chosen.ca_file))
    if chosen.tls == "require":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
