"""Passwords: Argon2id in a thread, at most two at once.

One check takes tens of milliseconds of CPU and 64 MiB: six at once on the loop stalled it for 3.3 s. An account that
does not exist costs the same as one that does, so that time tells nothing.

A password is hashed in Unicode's form NFC (NIST SP 800-63B-4, 3.1.1.2), so that it opens the account from any keyboard.
One that was stored as it was typed is known too: then, as well as for an account that does not exist, a password that
is not in that form costs two computations.
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Self

import anyio
import anyio.to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher

from tidegate.auth.breached import BreachedPasswords
from tidegate.auth.guessing import is_guessed_soon
from tidegate.errors import Overloaded, Unavailable, ValidationFailed
from tidegate.settings import Settings

MINIMUM_CHARACTERS: Final = 12
MAXIMUM_CHARACTERS: Final = 1024
_AT_ONCE: Final = 2
_WAITING_AT_MOST: Final = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a password opens an account. `better_hash` is to be stored where the parameters have changed since."""

    is_right: bool
    better_hash: str | None = field(default=None, repr=False)


class Passwords:
    """Hashes and verifies passwords without stalling the loop.

    >>> stored = await passwords.hash("correct horse battery")
    >>> (await passwords.verify("correct horse battery", stored)).is_right
    True
    """

    def __init__(self, scheme: PasswordHash | None = None, *, breached: BreachedPasswords | None = None) -> None:
        self._scheme = scheme or PasswordHash((Argon2Hasher(),))
        self._breached = breached
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        self._under_way = 0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Refuses those of the settings' file of breached ones."""
        path = settings.auth.breached_passwords_file
        return cls(breached=None if path is None else BreachedPasswords(path))

    async def hash(self, password: str) -> str:
        """What to store of a password that was made up here. Raises `Overloaded` where too many wait already."""
        with self._room():
            return await anyio.to_thread.run_sync(self._hash, password, limiter=self._limiter)

    async def choose(self, password: str, *, email: str) -> str:
        """What to store of a password that somebody chose for this address.

        Raises `ValidationFailed` where it is too short, common or breached, `Overloaded` where too many wait already,
        and `Unavailable` where the file of breached ones is gone.
        """
        with self._room():
            return await anyio.to_thread.run_sync(self._judge_and_hash, password, email, limiter=self._limiter)

    async def verify(self, password: str, stored: str | None) -> Verdict:
        """Whether `password` is the one behind `stored`; no `stored` costs the same and is never right.

        Raises `Overloaded` where too many wait already.
        """
        with self._room():
            return await anyio.to_thread.run_sync(self._verify, password, stored, limiter=self._limiter)

    @contextmanager
    def _room(self) -> Iterator[None]:
        if self._under_way >= _AT_ONCE + _WAITING_AT_MOST:
            raise Overloaded("Too many sign-ins at once: try again in a few seconds.", headers={"Retry-After": "5"})
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _hash(self, password: str) -> str:
        return self._scheme.hash(_normal(password))

    def _judge_and_hash(self, password: str, email: str) -> str:
        if fault := fault_of(password, email) or self._breach_of(password):
            raise ValidationFailed(f"password: {fault}.", [{"loc": ["body", "password"], "message": fault}])
        return self._hash(password)

    def _breach_of(self, password: str) -> str | None:
        if self._breached is None:
            return None
        try:
            # As it was typed and as it is hashed: who leaked it had it in either form.
            is_known = any(form in self._breached for form in dict.fromkeys((password, _normal(password))))
        except OSError as error:
            raise Unavailable(
                "New passwords cannot be judged now: TIDEGATE_AUTH__BREACHED_PASSWORDS_FILE cannot be read."
            ) from error
        if not is_known:
            return None
        return "this password has leaked, so others try it: take another one, and change it wherever else you use it"

    def _verify(self, password: str, stored: str | None) -> Verdict:
        normal = _normal(password)
        forms = (normal,) if normal == password else (normal, password)
        if stored is None:
            for form in forms:
                self._scheme.hash(form)
            return Verdict(is_right=False)
        try:
            verdicts = [Verdict(*self._scheme.verify_and_update(form, stored)) for form in forms]
        except PwdlibError:
            return Verdict(is_right=False)
        if verdicts[0].is_right or len(verdicts) == 1 or not verdicts[1].is_right:
            return verdicts[0]
        return Verdict(is_right=True, better_hash=self._scheme.hash(normal))


def fault_of(password: str, email: str) -> str | None:
    """What is wrong with a password that somebody chose, None where nothing is. Up to a second of CPU."""
    length = len(_normal(password))
    if not MINIMUM_CHARACTERS <= length <= MAXIMUM_CHARACTERS:
        return f"must have {MINIMUM_CHARACTERS} to {MAXIMUM_CHARACTERS} characters"
    if is_guessed_soon(_normal(password), email):
        return (
            "this password is one of those that are guessed first: take several words that do not belong together, "
            "or one that a password manager makes, without your name or address in it"
        )
    return None


def _normal(password: str) -> str:
    return unicodedata.normalize("NFC", password)
