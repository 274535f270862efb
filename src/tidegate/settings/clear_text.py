"""What is spoken to beyond this machine without TLS, by the settings and the catalogue: for whoever answers for it.

None of it is refused here. What may go in the clear within a network of one's own, and what never may, is said in
`tidegate.settings.rules`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tidegate.settings.hosts import database_hosts, host_of, is_loopback

if TYPE_CHECKING:
    from tidegate.settings import Settings

_ENCRYPTED = re.compile(r"[?&]ssl=(require|verify-ca|verify-full)\b")


def says_tls(database_url: str) -> bool:
    """Whether a URL of PostgreSQL itself lets nothing go without TLS."""
    return _ENCRYPTED.search(database_url) is not None


def spoken_in_the_clear(settings: "Settings", upstreams: Mapping[str, str]) -> list[str]:
    """By setting, each with where it leads; `upstreams` are their base URLs by name. Empty where there is none.

    What may be encrypted and need not be counts too: nobody would notice.

    >>> spoken_in_the_clear(settings, {"vllm": "http://vllm:8000/v1"})
    ['TIDEGATE_REDIS__URL (cache)', 'upstreams.vllm.base_url (vllm)']
    """
    return [f"{setting} ({', '.join(dict.fromkeys(hosts))})" for setting, hosts in _found(settings, upstreams)]


def clear_text_advice(settings: "Settings", upstreams: Mapping[str, str]) -> str | None:
    """The one line that names all of it; None where there is nothing to name."""
    places = spoken_in_the_clear(settings, upstreams)
    if not places:
        return None
    return f"goes in the clear beyond this machine: {'; '.join(places)}: whoever is on the way reads it; give each TLS"


def _found(settings: "Settings", upstreams: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    tls, url = settings.database.tls, settings.database_url
    hosts = [] if settings.on_sqlite else _beyond(*database_hosts(url))
    if hosts and tls not in ("verify", "require") and not says_tls(url):
        yield "TIDEGATE_DATABASE__TLS", hosts
    redis = settings.redis.url.get_secret_value() if settings.redis.url is not None else ""
    if redis.startswith("redis://") and (hosts := _beyond(host_of(redis) or "localhost")):
        yield "TIDEGATE_REDIS__URL", hosts
    mail = settings.mail
    if mail.smtp_host is not None and mail.smtp_security == "none" and (hosts := _beyond(mail.smtp_host)):
        yield "TIDEGATE_MAIL__SMTP_SECURITY", hosts
    webhook = settings.alerts.webhook_url
    called = {
        "TIDEGATE_SINGLE_SIGN_ON__ISSUER": settings.single_sign_on.issuer or "",
        "TIDEGATE_ALERTS__WEBHOOK_URL": "" if webhook is None else webhook.get_secret_value(),
        "TIDEGATE_TRACING__ENDPOINT": settings.tracing.endpoint or "",
        **{f"upstreams.{name}.base_url": base_url for name, base_url in upstreams.items()},
    }
    for setting, url in called.items():
        if url.startswith("http://") and (hosts := _beyond(host_of(url))):
            yield setting, hosts


def _beyond(*hosts: str) -> list[str]:
    return [host for host in hosts if not is_loopback(host)]
