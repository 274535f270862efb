"""Where rows and what is shared between workers are kept, as whom to go there, and how the way there is kept private.

What may change while the gateway runs stands in files that are read anew for each connection: a password, and the
certificate by which the gateway shows who it is. At the start each is looked at, so that a wrong one stops it.
"""

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import Field, PositiveInt, SecretStr, ValidationInfo, field_validator, model_validator

from tidegate.settings.kinds import AuthorityFile, Group, KeyFile, PasswordFile, check_pair

_TLS_IN_URL = re.compile(r"[?&]ssl(mode)?=")
_CHECKS_IN_URL = re.compile(r"[?&]ssl_(cert_reqs|check_hostname)=")


class DatabaseSettings(Group):
    url: SecretStr | None = Field(None, description="`postgresql+asyncpg://…` in production; SQLite in the data dir")
    password_file: PasswordFile | None = Field(
        None, description="a file of the password, in place of the URL's; read anew for each connection"
    )
    max_replicas: PositiveInt = Field(1, description="how many of these servers share the database")
    tls: Literal["verify", "require", "off"] | None = Field(
        None,
        description="to PostgreSQL: `verify` (its certificate and name), `require` (no certificate asked for), `off`; "
        "none: as the URL's `ssl` says, else where the server offers it",
    )
    ca_file: AuthorityFile | None = Field(
        None, description="with `TLS=verify`: the authority that signed PostgreSQL's certificate; none: the system's"
    )
    cert_file: Path | None = Field(
        None,
        description="with `TLS=verify` or `require`: the certificate that PostgreSQL is shown; read anew once it "
        "changed",
    )
    key_file: KeyFile | None = Field(None, description="its key, without a passphrase")
    pooler: Literal["transaction"] | None = Field(None, description="`transaction` behind PgBouncer in that mode")

    @field_validator("url")
    @classmethod
    def _driver_is_async(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql+asyncpg://", "sqlite+aiosqlite://")):
            raise ValueError("must begin with postgresql+asyncpg:// or sqlite+aiosqlite://")
        return url

    @field_validator("password_file")
    @classmethod
    def _password_is_given_once(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and "url" in info.data:
            url = _url(info)
            if not url.startswith("postgresql"):
                raise ValueError("needs TIDEGATE_DATABASE__URL to be PostgreSQL's, with the user in it")
            _refuse_password_in(url, "TIDEGATE_DATABASE__URL")
        return path

    @field_validator("tls")
    @classmethod
    def _tls_is_said_once(cls, tls: str | None, info: ValidationInfo) -> str | None:
        if tls is not None and _TLS_IN_URL.search(_url(info)):
            raise ValueError("TIDEGATE_DATABASE__URL says it too: take its ssl= out")
        return tls

    @field_validator("ca_file")
    @classmethod
    def _certificate_is_looked_at(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("tls") != "verify":
            raise ValueError("needs TIDEGATE_DATABASE__TLS=verify, which looks at the certificate")
        return path

    @field_validator("cert_file")
    @classmethod
    def _certificate_is_shown(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("tls") not in ("verify", "require"):
            raise ValueError("needs TIDEGATE_DATABASE__TLS=verify or require: nobody is shown it without TLS")
        return path

    @field_validator("key_file")
    @classmethod
    def _key_fits(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return _fitting(path, info)

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        _check_key_is_there(self.cert_file, self.key_file)
        return self


class RedisSettings(Group):
    url: SecretStr | None = Field(None, description="`redis://…`; without it stores are in this one process")
    password_file: PasswordFile | None = Field(
        None, description="a file of the password, in place of the URL's; read anew for each connection"
    )
    key_prefix: str = Field("tidegate", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="of every key and channel")
    ca_file: AuthorityFile | None = Field(
        None, description="the authority that signed the certificate of `rediss://…`; none: the system's"
    )
    cert_file: Path | None = Field(
        None, description="the certificate that the server of `rediss://…` is shown; read anew once it changed"
    )
    key_file: KeyFile | None = Field(None, description="its key, without a passphrase")
    cluster: bool = Field(
        False,
        description="the URL's server is a node of a Redis Cluster of 7.0 or later, and names the others",
    )

    @field_validator("url")
    @classmethod
    def _scheme_is_known(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return url

    @field_validator("password_file")
    @classmethod
    def _password_is_given_once(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and "url" in info.data:
            if not _url(info):
                raise ValueError("needs TIDEGATE_REDIS__URL")
            _refuse_password_in(_url(info), "TIDEGATE_REDIS__URL")
        return path

    @field_validator("ca_file")
    @classmethod
    def _certificate_is_looked_at(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and not _url(info).startswith("rediss://"):
            raise ValueError("needs TIDEGATE_REDIS__URL to begin with rediss://")
        if path is not None and _CHECKS_IN_URL.search(_url(info)):
            raise ValueError("TIDEGATE_REDIS__URL says otherwise: take out its ssl_cert_reqs= and ssl_check_hostname=")
        return path

    @field_validator("cert_file")
    @classmethod
    def _certificate_is_shown(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and not _url(info).startswith("rediss://"):
            raise ValueError("needs TIDEGATE_REDIS__URL to begin with rediss://: nobody is shown it without TLS")
        return path

    @field_validator("key_file")
    @classmethod
    def _key_fits(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return _fitting(path, info)

    @field_validator("cluster")
    @classmethod
    def _cluster_has_addresses(cls, cluster: bool, info: ValidationInfo) -> bool:
        if cluster and "url" in info.data:
            url = urlsplit(_url(info))
            if url.scheme not in ("redis", "rediss") or url.path not in ("", "/", "/0"):
                raise ValueError("needs TIDEGATE_REDIS__URL to be redis:// or rediss:// without a database but /0")
        return cluster

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        _check_key_is_there(self.cert_file, self.key_file)
        return self

    @property
    def trusting_url(self) -> str | None:
        """The URL with whom to trust, and what to show, as redis-py reads it there. It may hold the password."""
        if self.url is None:
            return None
        named = (("ssl_ca_certs", self.ca_file), ("ssl_certfile", self.cert_file), ("ssl_keyfile", self.key_file))
        files = [(name, str(path)) for name, path in named if path is not None]
        if not files:
            return self.url.get_secret_value()
        url = urlsplit(self.url.get_secret_value())
        # The first of a name is the one that is read.
        return urlunsplit(url._replace(query=urlencode([*files, *parse_qsl(url.query, keep_blank_values=True)])))


def _url(info: ValidationInfo) -> str:
    """What was given for it, empty without one."""
    url: SecretStr | None = info.data.get("url")
    return "" if url is None else url.get_secret_value()


def _refuse_password_in(url: str, variable: str) -> None:
    try:
        parts = urlsplit(url)
        is_there = bool(parts.password) or any(name == "password" for name, _ in parse_qsl(parts.query))
    except ValueError:
        is_there = True
    if is_there:
        raise ValueError(f"{variable} has a password too: take it out there")


def _fitting(key: Path | None, info: ValidationInfo) -> Path | None:
    """The key, where the certificate of the same group is its own."""
    certificate: Path | None = info.data.get("cert_file")
    if key is not None and certificate is not None:
        check_pair(certificate, key)
    return key


def _check_key_is_there(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise ValueError("cert_file and key_file are given together")
