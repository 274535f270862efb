"""What groups of settings are made of: the group itself, and kinds of values that several of them have."""

import ssl
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from tidegate.settings.references import SecretFile, holds_secret, resolve_secret


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _keyed_secrets(value: Any) -> Any:
    """`kid:secret,kid:secret` as pairs; the first signs or hashes, all verify."""
    if not isinstance(value, str):
        return value
    pairs = []
    for part in _split(value):
        kid, colon, secret = part.partition(":")
        if not colon or not kid or not secret:
            raise ValueError("each key is written kid:secret, several are separated by commas")
        pairs.append((kid, SecretStr(secret)))
    return tuple(pairs)


def _trusted(path: Path) -> Path:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path} holds no certificate in PEM's form (-----BEGIN CERTIFICATE-----)") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    return path


def _holds_password(path: Path) -> Path:
    # Whoever uses it reads it anew; here the start learns whether that can be done.
    resolve_secret(f"file:{path}")
    return path


def check_pair(certificate: Path, key: Path) -> None:
    """Raises `ValueError`, which says what is wrong, where this is no certificate with its key in PEM's form."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        are_two = error.reason == "KEY_VALUES_MISMATCH"
        why = "do not belong together" if are_two else "are no certificate and key in PEM's form"
        raise ValueError(f"{certificate} and {key} {why}") from None
    except OSError as error:
        raise ValueError(f"{certificate} or {key} cannot be read: {error.strerror or error}") from None


def _no_passphrase() -> str:
    # Without this OpenSSL asks for it at the terminal, and waits.
    raise ValueError("the key has a passphrase, which nobody could enter at a restart: store it without one")


# Of who signed a server's certificate.
AuthorityFile = Annotated[Path, AfterValidator(_trusted)]
# Read anew for each connection, so that it may change while the gateway runs.
PasswordFile = Annotated[Path, SecretFile(), AfterValidator(_holds_password)]
KeyFile = Annotated[Path, SecretFile()]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
KeyedSecrets = Annotated[tuple[tuple[str, SecretStr], ...], NoDecode, BeforeValidator(_keyed_secrets)]


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _secrets_may_stand_elsewhere(cls, value: Any, info: ValidationInfo) -> Any:
        is_secret = info.field_name is not None and holds_secret(cls.model_fields[info.field_name].annotation)
        return resolve_secret(value) if is_secret and isinstance(value, str) else value
