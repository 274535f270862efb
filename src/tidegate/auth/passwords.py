"""Passwords: Argon2id in a thread, at most two at once.

One check takes tens of milliseconds of CPU and 64 MiB: six at once on the loop stalled it for 3.3 s. An account that
does not exist costs the same one computation as one that does, so that time tells nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher

from tidegate.errors import Overloaded

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

    def __init__(self, scheme: PasswordHash | None = None) -> None:
        self._scheme = scheme or PasswordHash((Argon2Hasher(),))
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        self._under_way = 0

    async def hash(self, password: str) -> str:
        """What to store. Raises `Overloaded` where too many wait already."""
        with self._room():
            return await anyio.to_thread.run_sync(self._scheme.hash, password, limiter=self._limiter)

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

    def _verify(self, password: str, stored: str | None) -> Verdict:
        if stored is None:
            self._scheme.hash(password)
            return Verdict(is_right=False)
        try:
            return Verdict(*self._scheme.verify_and_update(password, stored))
        except PwdlibError:
            return Verdict(is_right=False)
