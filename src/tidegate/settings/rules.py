"""What may be convenient in development and is refused in production, and what is worth a warning there.

`production_faults` is the place of what the settings alone decide: it names every fault at once, each with its variable
and what to do, and never with the secret itself. That docs are off has no rule here: no setting turns them on. What the
catalogue may not say is judged where it is read, and the bootstrap password by the rule of accounts, at the start.
"""

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tidegate.settings.clear_text import says_tls
from tidegate.settings.hosts import database_hosts, host_of, is_loopback, is_private
from tidegate.settings.secrets import MINIMUM_BITS, entropy_bits, key_weakness, placeholder, weakness

if TYPE_CHECKING:
    from tidegate.settings import Settings

_MAKE_ONE: Final = "make one with: openssl rand -hex 32"
# As browsers send it: lower case, nothing after the port.
_ORIGIN: Final = re.compile(r"(?P<scheme>https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?P<port>:\d{1,5})?")
_OWN_PORTS: Final = (("https", ":443"), ("http", ":80"))
# Fewest bits of a network of proxies beyond private addresses; a wider one trusts whole providers.
_WIDEST_NETWORK: Final = {4: 8, 6: 16}
# What others issued: their form is theirs, but not this short.
_SHORTEST_ISSUED: Final = 8


def faults_everywhere(settings: "Settings") -> list[str]:
    """What no environment runs with, and a group alone does not know: one line a fault."""
    return [*_sign_in(settings), *_packages(settings)]


def production_faults(settings: "Settings") -> list[str]:
    """One line a fault: the variable, what is wrong with it, what to do."""
    rules = (_stores, _strong_secrets, _repeated_secrets, _issued_secrets, _edge, _public_url, _elsewhere, _logs)
    return [fault for rule in rules for fault in rule(settings)]


def production_advice(settings: "Settings") -> list[str]:
    """What is not refused, since a network of one's own may make it right, and is worth a line in the log."""
    rules = (_listening_advice, _database_advice, _redis_advice, _tracing_advice)
    return [line for rule in rules for line in rule(settings)]


def _sign_in(settings: "Settings") -> Iterator[str]:
    if not settings.auth.password_log_in and settings.single_sign_on.issuer is None:
        yield (
            "TIDEGATE_AUTH__PASSWORD_LOG_IN: without passwords nobody could sign in: set "
            "TIDEGATE_SINGLE_SIGN_ON__ISSUER and TIDEGATE_SINGLE_SIGN_ON__CLIENT_ID, or take it out"
        )


def _packages(settings: "Settings") -> Iterator[str]:
    """Nothing of them is imported: they are looked for."""
    if settings.tracing.endpoint is None:
        return
    if any(find_spec(package) is None for package in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.proto")):
        yield "TIDEGATE_TRACING__ENDPOINT: needs OpenTelemetry's packages: pip install 'tidegate[tracing]'"


def _stores(settings: "Settings") -> Iterator[str]:
    if settings.database.url is None:
        yield "TIDEGATE_DATABASE__URL: needed in production: postgresql+asyncpg://host/name, with its user and password"
    if settings.server.workers == 1:
        return
    if settings.redis.url is None:
        yield "TIDEGATE_REDIS__URL: needed for more than one worker; or set TIDEGATE_SERVER__WORKERS=1"
    if settings.database.url is not None and settings.on_sqlite:
        yield "TIDEGATE_DATABASE__URL: SQLite serves one worker; use PostgreSQL or TIDEGATE_SERVER__WORKERS=1"


def _strong_secrets(settings: "Settings") -> Iterator[str]:
    auth = settings.auth
    # Without them nobody can set up a second factor, which nobody need do then.
    needs_encryption = auth.second_factor != "optional"
    for name, keys, is_needed in (
        ("JWT_KEYS", auth.jwt_keys, True),
        ("API_KEY_PEPPERS", auth.api_key_peppers, True),
        ("ENCRYPTION_KEYS", auth.encryption_keys, needs_encryption),
    ):
        if not keys and is_needed:
            yield f"TIDEGATE_AUTH__{name}: needed in production: 1:SECRET; {_MAKE_ONE}"
        for kid, secret in keys:
            written = secret.get_secret_value()
            if told := weakness(written):
                yield f"TIDEGATE_AUTH__{name}: the secret of {kid!r} {told}; {_MAKE_ONE}"
            elif (bits := entropy_bits(written)) < MINIMUM_BITS:
                told = f"has {bits} bits at most, where {MINIMUM_BITS} are needed"
                yield f"TIDEGATE_AUTH__{name}: the secret of {kid!r} {told}; {_MAKE_ONE}"
    key = settings.bootstrap.api_key
    if key is not None and (told := key_weakness(key.get_secret_value())):
        yield f"TIDEGATE_BOOTSTRAP__API_KEY: the key {told}; make one with: tidegate keys create"
    webhook = settings.alerts.webhook_secret
    if webhook is not None and (told := weakness(webhook.get_secret_value())):
        yield f"TIDEGATE_ALERTS__WEBHOOK_SECRET: the secret {told}; {_MAKE_ONE}"


def _repeated_secrets(settings: "Settings") -> Iterator[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for variable, secret in _secrets(settings):
        places[secret].append(variable)
    for variables in places.values():
        first, *others = variables
        for variable in dict.fromkeys(others):
            where = "in it" if variable == first else f"as in {first}"
            yield f"{variable}: a secret is used twice, {where}; every use needs its own"


def _secrets(settings: "Settings") -> Iterator[tuple[str, str]]:
    for _, key in settings.auth.jwt_keys:
        yield "TIDEGATE_AUTH__JWT_KEYS", key.get_secret_value()
    for _, key in settings.auth.api_key_peppers:
        yield "TIDEGATE_AUTH__API_KEY_PEPPERS", key.get_secret_value()
    for _, key in settings.auth.encryption_keys:
        yield "TIDEGATE_AUTH__ENCRYPTION_KEYS", key.get_secret_value()
    for variable, secret in (
        ("TIDEGATE_ALERTS__WEBHOOK_SECRET", settings.alerts.webhook_secret),
        ("TIDEGATE_MAIL__SMTP_PASSWORD", settings.mail.smtp_password),
        ("TIDEGATE_SINGLE_SIGN_ON__CLIENT_SECRET", settings.single_sign_on.client_secret),
        ("TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD", settings.bootstrap.admin_password),
        ("TIDEGATE_BOOTSTRAP__API_KEY", settings.bootstrap.api_key),
    ):
        if secret is not None:
            yield variable, secret.get_secret_value()


def _issued_secrets(settings: "Settings") -> Iterator[str]:
    for variable, secret in (
        ("TIDEGATE_MAIL__SMTP_PASSWORD", settings.mail.smtp_password),
        ("TIDEGATE_SINGLE_SIGN_ON__CLIENT_SECRET", settings.single_sign_on.client_secret),
    ):
        if secret is None:
            continue
        value = secret.get_secret_value()
        if told := placeholder(value):
            yield f"{variable}: it {told}; put in what was issued to you"
        elif len(value) < _SHORTEST_ISSUED:
            yield f"{variable}: it is shorter than {_SHORTEST_ISSUED} characters; have a longer one issued"


def _edge(settings: "Settings") -> Iterator[str]:
    for origin in settings.http.cors_origins:
        written = _ORIGIN.fullmatch(origin)
        if written is None or (written["scheme"], written["port"]) in _OWN_PORTS:
            yield (
                f"TIDEGATE_HTTP__CORS_ORIGINS: {origin!r} is not one exact origin as browsers send it, "
                "such as https://app.example.com"
            )
        elif written["scheme"] == "http" and not is_loopback(host_of(origin)):
            yield (
                f"TIDEGATE_HTTP__CORS_ORIGINS: {origin!r}: a page by http:// can be changed by anyone on its way; "
                "serve it by https://"
            )
    for proxy in settings.http.trusted_proxies:
        if _is_everyone(proxy):
            yield (
                f"TIDEGATE_HTTP__TRUSTED_PROXIES: {proxy!r}: name the proxies' own addresses; "
                "everyone cannot be trusted"
            )


def _is_everyone(proxy: str) -> bool:
    if proxy == "*":
        return True
    network = ipaddress.ip_network(proxy, strict=False)
    is_own = is_private(str(network.network_address)) and is_private(str(network.broadcast_address))
    return not is_own and network.prefixlen < _WIDEST_NETWORK[network.version]


def _public_url(settings: "Settings") -> Iterator[str]:
    url = settings.http.public_url
    if url is None:
        needs = [
            what
            for what, is_set in (
                ("links in e-mails", settings.mail.smtp_host is not None),
                ("single sign-on", settings.single_sign_on.issuer is not None),
            )
            if is_set
        ]
        if needs:
            yield f"TIDEGATE_HTTP__PUBLIC_URL: needed for {' and '.join(needs)}: https://gateway.example.com"
    elif url.startswith("http://") and not is_loopback(host_of(url)):
        yield "TIDEGATE_HTTP__PUBLIC_URL: tokens would travel in the clear; use https://"


def _elsewhere(settings: "Settings") -> Iterator[str]:
    """Secrets that would go to others in the clear."""
    issuer = settings.single_sign_on.issuer
    if issuer is not None and issuer.startswith("http://") and not is_loopback(host_of(issuer)):
        yield "TIDEGATE_SINGLE_SIGN_ON__ISSUER: who signs in cannot be known over http://; use https://"
    mail = settings.mail
    sends_password = mail.smtp_host is not None and mail.smtp_password is not None
    if sends_password and mail.smtp_security == "none" and not is_loopback(mail.smtp_host or ""):
        yield "TIDEGATE_MAIL__SMTP_SECURITY: the password would travel in the clear; use starttls or tls"
    database_url = settings.database_url
    is_unchosen = settings.database.tls is None and not says_tls(database_url)
    if not settings.on_sqlite and is_unchosen and not all(map(is_private, database_hosts(database_url))):
        yield (
            "TIDEGATE_DATABASE__TLS: the server is beyond private networks: choose verify (see TIDEGATE_DATABASE__"
            "CA_FILE), or require, which knows no stranger, or off where something else encrypts"
        )
    webhook = settings.alerts.webhook_url
    if webhook is not None:
        url = webhook.get_secret_value()
        if url.startswith("http://") and not is_private(host_of(url)):
            yield "TIDEGATE_ALERTS__WEBHOOK_URL: alerts would travel in the clear; use https://"
    tracing = settings.tracing
    sends_secrets = tracing.endpoint is not None and tracing.headers is not None
    if sends_secrets and _is_open(tracing.endpoint or ""):
        yield "TIDEGATE_TRACING__ENDPOINT: TIDEGATE_TRACING__HEADERS would travel in the clear; use https://"


def _logs(settings: "Settings") -> Iterator[str]:
    if settings.log_level == "debug":
        yield "TIDEGATE_LOG_LEVEL: debug shows what libraries send and get; use info in production"


def _listening_advice(settings: "Settings") -> Iterator[str]:
    """An ingress may be in front that no setting names: whether that is so is not for us to know."""
    server = settings.server
    if server.tls_certificate is not None or settings.http.trusted_proxies:
        return
    management = server.management_host or server.host
    for variable, host in (
        ("TIDEGATE_SERVER__HOST", server.host),
        ("TIDEGATE_SERVER__MANAGEMENT_HOST", management if server.management_port is not None else server.host),
    ):
        if not is_loopback(host):
            yield (
                f"{variable}: keys and answers travel in the clear beyond this machine: set TIDEGATE_SERVER__"
                "TLS_CERTIFICATE and TIDEGATE_SERVER__TLS_KEY, or put a proxy that speaks TLS in front and name it in "
                "TIDEGATE_HTTP__TRUSTED_PROXIES"
            )
            return


def _database_advice(settings: "Settings") -> Iterator[str]:
    url = settings.database_url
    hosts = database_hosts(url)
    if settings.on_sqlite or not hosts:
        return
    is_known_otherwise = settings.database.password_file is not None or settings.database.cert_file is not None
    if not _has_password(url) and not is_known_otherwise:
        yield "TIDEGATE_DATABASE__URL: it has no password; give the role one unless the server knows it otherwise"
    if all(map(is_loopback, hosts)) or says_tls(url) or settings.database.tls == "verify":
        return
    if settings.database.tls is None:
        yield (
            "TIDEGATE_DATABASE__TLS: nobody chose whether rows travel in the clear; choose verify, or off in a network "
            "of your own"
        )
    elif not all(map(is_private, hosts)):
        yield "TIDEGATE_DATABASE__TLS: the server is beyond private networks; only verify knows a stranger"


def _redis_advice(settings: "Settings") -> Iterator[str]:
    url = settings.redis.url.get_secret_value() if settings.redis.url is not None else ""
    if url.startswith("redis://") and not is_private(host_of(url)):
        yield "TIDEGATE_REDIS__URL: the server is beyond private networks; use rediss://"


def _tracing_advice(settings: "Settings") -> Iterator[str]:
    if _is_open(settings.tracing.endpoint or ""):
        yield "TIDEGATE_TRACING__ENDPOINT: traces travel in the clear beyond private networks; use https://"


def _is_open(url: str) -> bool:
    """Whether what is sent there can be read beyond private networks."""
    return url.startswith("http://") and not is_private(host_of(url))


def _has_password(url: str) -> bool:
    try:
        return bool(urlsplit(url).password)
    except ValueError:
        return False
