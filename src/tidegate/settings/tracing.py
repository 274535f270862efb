"""Where traces go, and how many."""

import re
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator

from tidegate.settings.groups import Group

_ENDPOINT = re.compile(r"https?://[^/?#@\s]+(/[^?#\s]*)?")
# RFC 9110, 5.6.2 and 5.5.
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21-\x7e]+( +[\x21-\x7e]+)*")
# What an exporter says for itself.
_OWN_HEADERS = frozenset({"host", "content-length", "content-type", "content-encoding", "transfer-encoding"})


class TracingSettings(Group):
    endpoint: str | None = Field(
        None,
        max_length=2048,
        description="an OTLP/HTTP collector, `http://127.0.0.1:4318`, which is sent traces; none: off",
    )
    headers: SecretStr | None = Field(
        None, description="`name=value,…`, sent to it; values may be percent-encoded, as OpenTelemetry writes them"
    )
    sample: float = Field(
        1, ge=0, le=1, description="the share of requests that are traced; trusted proxies decide for theirs"
    )
    service_name: str = Field("tidegate", min_length=1, max_length=255, description="`service.name` of its traces")

    @field_validator("endpoint")
    @classmethod
    def _may_be_called(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not (_ENDPOINT.fullmatch(endpoint) and _names_host(endpoint)):
            raise ValueError("must be a collector's URL, such as http://127.0.0.1:4318, with nothing behind its path")
        return endpoint

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: SecretStr | None) -> SecretStr | None:
        if headers is not None:
            _pairs(headers.get_secret_value())
        return headers

    @property
    def url(self) -> str | None:
        """Where traces are posted: OTLP's own path, where the endpoint has none."""
        if self.endpoint is None or urlsplit(self.endpoint).path.strip("/"):
            return self.endpoint
        return self.endpoint.rstrip("/") + "/v1/traces"

    @property
    def header_pairs(self) -> list[tuple[str, str]]:
        """They are secrets."""
        return [] if self.headers is None else _pairs(self.headers.get_secret_value())


def _names_host(url: str) -> bool:
    try:
        parsed = urlsplit(url)
        return bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        return False


def _pairs(text: str) -> list[tuple[str, str]]:
    """Raises `ValueError`, which shows no value."""
    pairs = []
    for number, part in enumerate((part.strip() for part in text.split(",")), start=1):
        name, equals, value = part.partition("=")
        name, value = name.strip(), unquote(value.strip())
        if not equals or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"the header {number} is not written name=value; several are separated by commas")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"{name} is not for settings to say")
        pairs.append((name, value))
    return pairs
