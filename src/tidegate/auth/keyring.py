"""The secrets of a deployment: ordered by kid, the first in use, all of them verifying or decrypting.

They come from the settings. Outside production what the settings leave out is generated once, kept in
`<data dir>/secrets.json` (0600) and used again: without it every key and token that was issued would be void after a
restart. Where the settings name secrets later, those come first and the file's still verify, so that this voids nothing
either. The file appears whole and at once, so processes that start together agree on its content.

Those that encrypt are not in it: outside production they are derived of the peppers, behind what the settings name.
"""

import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from pydantic import SecretStr

from tidegate.settings import Settings, SettingsError
from tidegate.settings.groups import MINIMUM_SECRET_BYTES

SECRETS_FILE: Final = "secrets.json"
_GENERATED_KID: Final = "generated"
_RINGS: Final = ("jwt_keys", "api_key_peppers")
_ENCRYPTION: Final = b"tidegate encryption keys outside production"


class Keyring:
    """Secrets by kid, in order: the first signs or hashes, all verify.

    >>> Keyring({"2": b"new", "1": b"old"}).current_kid
    '2'
    """

    __slots__ = ("_secrets", "current", "current_kid")

    def __init__(self, by_kid: Mapping[str, bytes]) -> None:
        """Raises `ValueError` where there is no secret at all."""
        if not by_kid:
            raise ValueError("a keyring needs at least one secret")
        self._secrets = MappingProxyType(dict(by_kid))
        self.current_kid, self.current = next(iter(self._secrets.items()))

    def get(self, kid: str) -> bytes | None:
        return self._secrets.get(kid)

    def items(self) -> Iterable[tuple[str, bytes]]:
        """Every kid with its secret, in order."""
        return self._secrets.items()

    @classmethod
    def rotated_after(cls, before: "Keyring | None", *, keep: int | None = None) -> "Keyring":
        """A new secret first, and after it the old ones, where there are any: all of them, or the `keep` latest."""
        kid = f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
        old = [] if before is None else list(before.items())[:keep]
        return cls({kid: secrets.token_urlsafe(MINIMUM_SECRET_BYTES).encode()} | dict(old))

    def rotated(self, *, keep: int | None = None) -> "Keyring":
        """As `rotated_after`, of this one."""
        return self.rotated_after(self, keep=keep)

    def as_setting(self) -> str:
        """`kid:secret,…`, as a variable holds it. The secrets themselves: not for a log."""
        return ",".join(f"{kid}:{secret.decode('utf-8')}" for kid, secret in self.items())

    def __repr__(self) -> str:
        return f"Keyring(kids={list(self._secrets)})"


class Keyrings:
    """The keyrings of a process: `jwt` for access tokens, `peppers` for API keys, `encryption` for what is stored
    encrypted; None where production names no keys for it.

    >>> keyrings = Keyrings.load(load_settings())
    """

    __slots__ = ("encryption", "jwt", "peppers")

    def __init__(self, *, jwt: Keyring, peppers: Keyring, encryption: Keyring | None = None) -> None:
        self.jwt = jwt
        self.peppers = peppers
        self.encryption = encryption

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The settings' secrets, and outside production generated ones: what the settings leave out, or what was
        generated before they named any.

        Reads or writes a file of the data dir. Raises `SettingsError` where production leaves one out, or where that
        file can be neither read nor written.
        """
        configured = {
            "jwt_keys": _by_kid(settings.auth.jwt_keys),
            "api_key_peppers": _by_kid(settings.auth.api_key_peppers),
        }
        missing = [name for name, by_kid in configured.items() if not by_kid]
        if missing and settings.in_production:
            raise SettingsError([f"TIDEGATE_AUTH__{name.upper()}: needed in production" for name in missing])
        if not settings.in_production:
            generated = _generated(settings.data_dir / SECRETS_FILE, is_needed=bool(missing))
            configured = {name: by_kid | _others(generated[name], by_kid) for name, by_kid in configured.items()}
        encryption = _by_kid(settings.auth.encryption_keys)
        if not settings.in_production:
            encryption |= _others(_derived(configured["api_key_peppers"]), encryption)
        return cls(
            jwt=Keyring(configured["jwt_keys"]),
            peppers=Keyring(configured["api_key_peppers"]),
            encryption=Keyring(encryption) if encryption else None,
        )

    def __repr__(self) -> str:
        return f"Keyrings(jwt={self.jwt!r}, peppers={self.peppers!r}, encryption={self.encryption!r})"


def write_private_file(path: Path, text: str, *, replace: bool) -> bool:
    """Writes a file of mode 0600 that appears whole. False where it exists already and `replace` is false.

    Makes the directory where it is missing (0700). Raises `OSError`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp opens with 0600 and O_EXCL, so no moment shows the text to others.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            Path(temporary).replace(path)
        else:
            os.link(temporary, path)  # unlike rename, refuses a name that is taken: the first process wins
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    return True


def _by_kid(pairs: tuple[tuple[str, SecretStr], ...]) -> dict[str, bytes]:
    return {kid: secret.get_secret_value().encode("utf-8") for kid, secret in pairs}


def _derived(peppers: Mapping[str, bytes]) -> dict[str, bytes]:
    """Of each pepper a secret to encrypt by, under a kid that says whence."""
    return {
        f"generated-{kid}": hmac.new(pepper, _ENCRYPTION, "sha256").hexdigest().encode()
        for kid, pepper in peppers.items()
    }


def _others(by_kid: Mapping[str, bytes], named: Mapping[str, bytes]) -> dict[str, bytes]:
    return {kid: secret for kid, secret in by_kid.items() if kid not in named}


def _generated(path: Path, *, is_needed: bool) -> dict[str, dict[str, bytes]]:
    """What is in the file, which is made where it is missing and needed."""
    try:
        if not path.exists():
            if not is_needed:
                return {name: {} for name in _RINGS}
            fresh = {name: {_GENERATED_KID: secrets.token_hex(MINIMUM_SECRET_BYTES)} for name in _RINGS}
            write_private_file(path, json.dumps(fresh, indent=2) + "\n", replace=False)
        text = path.read_text("utf-8")
    except OSError as error:
        fault = (
            f"TIDEGATE_DATA_DIR: {path} cannot be read and written: {error.strerror or error}; name another directory"
        )
        raise SettingsError([fault]) from None
    return _parse(path, text)


def _parse(path: Path, text: str) -> dict[str, dict[str, bytes]]:
    try:
        return {name: _strong(json.loads(text)[name]) for name in _RINGS}
    except (ValueError, KeyError, TypeError, AttributeError):
        fault = (
            f"TIDEGATE_DATA_DIR: {path} is damaged. Restore it; or remove it to have new secrets made: "
            "that voids every API key and sign-in made with the old ones"
        )
        raise SettingsError([fault]) from None


def _strong(by_kid: Mapping[str, str]) -> dict[str, bytes]:
    ring = {kid: secret.encode("utf-8") for kid, secret in by_kid.items()}
    if not ring or min(map(len, ring.values())) < MINIMUM_SECRET_BYTES:
        raise ValueError
    return ring
