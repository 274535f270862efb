"""The groups of settings: what each variable may hold, by its type alone, and what it is for.

A secret is a `SecretStr`; `env:NAME` or `file:/path` may stand in its place. What depends on other groups, or on the
environment, is judged in `tidegate.settings.rules`.
"""

import ipaddress
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    EmailStr,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)

from tidegate.settings.kinds import CommaSeparated, Group, KeyedSecrets, KeyFile
from tidegate.settings.stores import DatabaseSettings, RedisSettings

__all__ = [
    "MINIMUM_SECRET_BYTES",
    "AlertsSettings",
    "AuthSettings",
    "BootstrapSettings",
    "DatabaseSettings",
    "Group",
    "HttpSettings",
    "LimitsSettings",
    "MailSettings",
    "RedisSettings",
    "ServerSettings",
    "SingleSignOnSettings",
]

MINIMUM_SECRET_BYTES = 32
_BREACHED = re.compile(rb"[0-9A-Fa-f]{40}\s*(:|$)")
_CALLED_URL = re.compile(r"https?://[^/?#@\s]+([/?]\S*)?")
# As `http.authority` reads them; `*.` for every name below.
_HOST = re.compile(r"((\*\.)?[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?")
_API_KEY = re.compile(r"tg_[a-z0-9]{8}_[A-Za-z0-9_-]{43}")


class AuthSettings(Group):
    jwt_keys: KeyedSecrets = Field((), description="`kid:secret,…`: the first signs, all verify; 32 random bytes each")
    api_key_peppers: KeyedSecrets = Field((), description="`kid:secret,…`: the first hashes new API keys, all verify")
    encryption_keys: KeyedSecrets = Field(
        (), description="`kid:secret,…`: the first encrypts second factors, all decrypt; without it there are none"
    )
    jwt_algorithm: Literal["HS256", "EdDSA"] = Field(
        "HS256", description="of access tokens, the one that is accepted; `EdDSA` publishes its public keys as a JWKS"
    )
    access_token_minutes: int = Field(15, ge=1, le=60, description="1 to 60")
    sign_in_days: int = Field(30, ge=1, le=365, description="how long a sign-in is refreshed before the next log-in")
    sign_in_idle_days: int = Field(7, ge=1, le=365, description="and for how long at most without being refreshed")
    password_log_in: bool = Field(
        True, description="`false`: people come in by single sign-on alone; passwords are neither taken nor changed"
    )
    second_factor: Literal["optional", "required", "admins"] = Field(
        "optional", description="who needs one of those who sign in by a password: nobody, everybody, or admins alone"
    )
    initial_password_days: int = Field(
        7, ge=1, le=365, description="how long a password that somebody else chose, or that was made up, opens a log-in"
    )
    breached_passwords_file: Path | None = Field(
        None, description="SHA-1 hashes of passwords that leaked, sorted, one a line: nobody may choose one of them"
    )

    @field_validator("breached_passwords_file")
    @classmethod
    def _holds_hashes(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                with path.open("rb") as file:
                    first = file.readline(1024)
            except OSError as error:
                raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
            if not _BREACHED.match(first):
                raise ValueError(f"{path} does not begin with a SHA-1 in hexadecimal, one a line and sorted")
        return path

    @field_validator("jwt_keys", "api_key_peppers", "encryption_keys")
    @classmethod
    def _secrets_are_strong(cls, pairs: tuple[tuple[str, SecretStr], ...]) -> tuple[tuple[str, SecretStr], ...]:
        if len({kid for kid, _ in pairs}) != len(pairs):
            raise ValueError("two keys have one kid; give each its own")
        for kid, secret in pairs:
            _check_strength(kid, secret.get_secret_value())
        return pairs


class HttpSettings(Group):
    cors_origins: CommaSeparated = Field((), description="exact origins, comma-separated")
    trusted_proxies: CommaSeparated = Field((), description="addresses or CIDRs whose X-Forwarded-For is believed")
    max_body_bytes: PositiveInt = Field(
        20 * 1024 * 1024, description="of a body under /v1, 413 past it; 64 KiB elsewhere"
    )
    end_user_headers: CommaSeparated = Field((), description="headers of trusted front ends that name the end user")
    allowed_hosts: CommaSeparated = Field((), description="Host headers that are answered, `*.example.com` too; any")
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s?#@]+$",
        max_length=255,
        description="`https://gateway.example.com`: the base of links in e-mails and of single sign-on",
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no host, such as gateway.example.com, *.example.com or example.com:8443")
        return hosts

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                if proxy != "*":
                    raise ValueError(f"{proxy!r} is neither an address nor a CIDR, such as 10.0.0.0/8") from None
        return proxies


class ServerSettings(Group):
    host: str = Field("127.0.0.1", min_length=1, max_length=255, description="the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="the port to listen on; 0 takes a free one")
    workers: Literal["auto"] | PositiveInt = Field(
        "auto", description="`auto`: 1 in development, 2 × CPU + 1 in production, the container's quota counted"
    )
    drain_s: PositiveFloat = Field(30, description="how long running streams may finish when a worker leaves")
    linger_s: NonNegativeFloat = Field(0, description="how long listeners stay open before that, answering 503")
    max_requests: NonNegativeInt = Field(
        100_000, description="requests after which a worker is replaced, ± 10 % by worker; 0: never"
    )
    stall_log_s: NonNegativeFloat = Field(
        1, description="a loop that does not turn for so long is logged with the stack that held it; 0: never"
    )
    management_port: int | None = Field(
        None, ge=0, le=65535, description="a port of its own for the page and `/api`; 0 takes a free one"
    )
    management_host: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="the address of that port, such as `127.0.0.1`; else `HOST`",
    )
    tls_certificate: Path | None = Field(
        None, description="a PEM file, the chain, its own first: every port speaks https; none: http, for a proxy"
    )
    tls_key: KeyFile | None = Field(None, description="a PEM file, the key of that certificate, without a passphrase")

    @property
    def scheme(self) -> Literal["http", "https"]:
        """What its ports speak."""
        return "http" if self.tls_certificate is None else "https"

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS_CERTIFICATE and TLS_KEY are given together")
        return self

    @model_validator(mode="after")
    def _ports_are_two(self) -> Self:
        if self.management_port is None and self.management_host is not None:
            raise ValueError("MANAGEMENT_HOST needs TIDEGATE_SERVER__MANAGEMENT_PORT")
        if self.management_port and self.management_port == self.port:
            raise ValueError("PORT and MANAGEMENT_PORT are the same; give management another")
        return self


class LimitsSettings(Group):
    on_store_failure: Literal["local", "deny", "allow"] = Field(
        "local", description="while Redis is away: `local` judges by each worker's share, `deny` answers 503, `allow`"
    )
    api_per_minute: PositiveInt = Field(
        600, description="calls that one key or user may make a minute, but for inference, whose limits are rows"
    )
    keys_per_member: NonNegativeInt = Field(
        100, description="who holds so many API keys makes no other, as a member; 0: members make none"
    )


class AlertsSettings(Group):
    webhook_url: SecretStr | None = Field(None, description="where alerts of limits and budgets are posted")
    webhook_secret: SecretStr | None = Field(None, description="signs them: HMAC-SHA256 in `X-Tidegate-Signature`")

    @field_validator("webhook_url")
    @classmethod
    def _scheme_is_http(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("must begin with https:// or http://")
        if url is not None and not _CALLED_URL.fullmatch(url.get_secret_value()):
            raise ValueError("must name a host, without a name or a password before it")
        return url

    @field_validator("webhook_secret")
    @classmethod
    def _secret_is_strong(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            _check_strength("webhook", secret.get_secret_value())
        return secret

    @model_validator(mode="after")
    def _is_signed(self) -> Self:
        if self.webhook_url is not None and self.webhook_secret is None:
            raise ValueError("webhook_url needs webhook_secret, which signs what is posted")
        return self


class MailSettings(Group):
    smtp_host: str | None = Field(None, min_length=1, max_length=255, description="who sends e-mails; none: no e-mail")
    smtp_port: int = Field(587, ge=1, le=65535, description="587 for STARTTLS, 465 for TLS, 25 for neither")
    smtp_security: Literal["starttls", "tls", "none"] = Field("starttls", description="`starttls`, `tls` or `none`")
    smtp_username: str | None = Field(None, min_length=1, max_length=255, description="where the server asks for it")
    smtp_password: SecretStr | None = Field(None, description="where the server asks for it")
    sender: EmailStr | None = Field(None, description="the address that e-mails come from")
    timeout_s: PositiveFloat = Field(15, description="for a whole e-mail")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.smtp_host is not None and self.sender is None:
            raise ValueError("smtp_host needs sender, the address that e-mails come from")
        if (self.smtp_username is None) != (self.smtp_password is None):
            raise ValueError("smtp_username and smtp_password are given together")
        return self


class SingleSignOnSettings(Group):
    issuer: str | None = Field(
        None, pattern=r"^https?://[^\s?#]+$", max_length=512, description="the OpenID Connect provider; none: off"
    )
    client_id: str | None = Field(None, min_length=1, max_length=255, description="this gateway's name there")
    client_secret: SecretStr | None = Field(None, description="its secret there; none: a public client, by PKCE alone")
    scopes: CommaSeparated = Field(("openid", "email", "profile"), description="what it is asked for")
    groups_claim: str = Field("groups", min_length=1, max_length=255, description="the claim that lists groups")
    admin_groups: CommaSeparated = Field((), description="groups whose people are admins")
    member_groups: CommaSeparated = Field((), description="groups whose people are members; none: everyone is")
    workspace: str = Field("default", min_length=1, max_length=128, description="the workspace of new users")
    label: str = Field("single sign-on", min_length=1, max_length=64, description="what the page calls it")
    min_rsa_bits: int = Field(
        2048, ge=2048, le=16384, description="the smallest RSA keys by which it may sign; 3072 and more have 128 bits"
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.issuer is None) != (self.client_id is None):
            raise ValueError("issuer and client_id are given together")
        return self


class BootstrapSettings(Group):
    admin_email: EmailStr | None = Field(None, description="an admin, created at start where missing")
    admin_password: SecretStr | None = Field(None, description="of that admin, at least 12 characters")
    api_key: SecretStr | None = Field(None, description="an API key owned by that admin, created where missing")

    @field_validator("api_key")
    @classmethod
    def _key_has_the_form(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not _API_KEY.fullmatch(key.get_secret_value()):
            raise ValueError("must be tg_ + 8 of a-z0-9 + _ + 43 of base64url")
        return key

    @field_validator("admin_password")
    @classmethod
    def _password_is_long(cls, password: SecretStr | None) -> SecretStr | None:
        if password is not None and len(password.get_secret_value()) < 12:
            raise ValueError("must have at least 12 characters")
        return password

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.admin_password or self.api_key) and not self.admin_email:
            raise ValueError("ADMIN_PASSWORD and API_KEY need TIDEGATE_BOOTSTRAP__ADMIN_EMAIL")
        return self


def _check_strength(kid: str, secret: str) -> None:
    if len(secret.encode()) < MINIMUM_SECRET_BYTES:
        raise ValueError(
            f"the secret of {kid!r} is shorter than {MINIMUM_SECRET_BYTES} bytes; make one with: openssl rand -hex 32"
        )
    if len(set(secret)) < 12:
        raise ValueError(f"the secret of {kid!r} repeats itself; make one with: openssl rand -hex 32")
