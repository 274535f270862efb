"""From a request's headers to its principal: the one place where a credential is judged.

The road of a known caller is: read the headers, one SHA-256, one dictionary, no wait (about 2 µs). An expiry is judged
at each use, by the clock, whatever was remembered; so is where a key may be used from, by the request's own address.
What is remembered, and for how long, is `principal_cache`'s; what the database says is `directory`'s; what changed
since is `storage.changes`'.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable

from tidegate.auth.addresses import plain_address
from tidegate.auth.api_keys import KEY_MARK, prefix_of
from tidegate.auth.credentials import is_api_key, read_credential
from tidegate.auth.directory import Directory
from tidegate.auth.keyring import Keyrings
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal, SecondFactorRule
from tidegate.auth.principal_cache import CacheBounds, Judge, PrincipalCache
from tidegate.auth.signing_keys import Algorithm
from tidegate.auth.tokens import DEFAULT_MINUTES, AccessTokens
from tidegate.errors import InvalidApiKey, InvalidToken, PermissionDenied, TokenExpired
from tidegate.storage.changes import Changes
from tidegate.storage.database import Database


class Authenticator:
    """Judges credentials for one process, and holds what else belongs to that: `tokens` and `passwords`.

    `changes` is by `monotonic`'s clock. Without it what is remembered is asked again every second.

    >>> authenticator = Authenticator(database, Keyrings.load(settings), changes=changes)
    >>> principal = await authenticator.authenticate(scope["headers"])
    >>> await authenticator.aclose()  # before the database is
    """

    def __init__(
        self,
        database: Database,
        keyrings: Keyrings,
        *,
        access_token_minutes: int = DEFAULT_MINUTES,
        jwt_algorithm: Algorithm = "HS256",
        second_factor: SecondFactorRule = "optional",
        passwords: Passwords | None = None,
        changes: Changes | None = None,
        bounds: CacheBounds | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tokens = AccessTokens(keyrings.jwt, minutes=access_token_minutes, algorithm=jwt_algorithm, clock=clock)
        self.passwords = passwords or Passwords()
        self._directory = Directory(database, keyrings.peppers, second_factor)
        self._cache = PrincipalCache(bounds or CacheBounds(), monotonic, changes)
        self._clock = clock
        if changes is not None:
            for prefix in ("key:", "user:"):
                changes.listen(prefix, self._hear)

    @property
    def look_ups(self) -> int:
        """How often the database was asked."""
        return self._cache.look_ups

    @property
    def stale_uses(self) -> int:
        """How often a caller went on by memory because the database did not answer."""
        return self._cache.stale_uses

    async def authenticate(
        self, headers: Iterable[tuple[bytes, bytes]], client_address: str | None = None
    ) -> Principal:
        """The caller of a request; `headers` are the ASGI scope's, `client_address` its true client's, None: unknown.

        Raises `MissingCredentials`, `InvalidApiKey`, `InvalidToken`, `TokenExpired`, `PermissionDenied` where a key may
        not be used from there, or `Unavailable` where the database is needed and does not answer.
        """
        credential = read_credential(headers)
        digest = hashlib.sha256(credential).digest()
        principal = self._cache.fresh(digest) or await self._cache.resolve(digest, self._judge_of(credential))
        if principal.expires_at is not None and principal.expires_at <= self._clock():
            raise _expired(principal)
        if principal.allowed_from is not None and not principal.allowed_from.admits(client_address):
            raise _not_from(client_address)
        if principal.key_id is not None:
            self._directory.upkeep.used(principal.key_id)
        if self._cache.is_due(digest):
            self._cache.refresh(digest, self._judge_of(credential))
        return principal

    async def aclose(self) -> None:
        """Ends what runs in the background. To be called before the database is closed."""
        await self._cache.aclose()
        await self._directory.upkeep.aclose()

    def _hear(self, topic: str | None) -> None:
        # After a gap nothing that was read before it is vouched for, so there is nothing to forget.
        if topic is not None:
            self._cache.forget(uuid.UUID(topic.partition(":")[2]))

    def _judge_of(self, credential: bytes) -> Judge:
        """Who says whose it is. Raises the refusal of a credential that needs no look-up."""
        try:
            text = credential.decode("ascii")
        except UnicodeDecodeError:
            kind = InvalidApiKey if is_api_key(credential) else InvalidToken
            raise kind(
                "The credential holds characters that no credential of this gateway has: copy it again."
            ) from None
        if is_api_key(credential):
            prefix = prefix_of(text)
            if prefix is None:
                raise InvalidApiKey(
                    "This is not a whole API key: one is tg_, 8 characters, _ and 43 characters; copy it again."
                )
            return lambda: self._directory.judge_key(prefix, text)
        token = self.tokens.verify(text)
        return lambda: self._directory.judge_token(token)


def _expired(principal: Principal) -> InvalidApiKey | TokenExpired:
    if principal.key_id is None:
        return TokenExpired("The access token has expired: sign in again for a new one.")
    return InvalidApiKey(f"The API key {KEY_MARK}{principal.key_prefix} has expired: ask an admin for another.")


def _not_from(client_address: str | None) -> PermissionDenied:
    # Only an address is repeated: whatever else stands there came from the caller.
    seen = plain_address(client_address) or "an address that is not known"
    return PermissionDenied(f"This key may not be used from {seen}: ask whoever keeps it.")
