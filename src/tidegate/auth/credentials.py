"""The credential that a request presents: an API key or an access token, read from its raw headers in one pass.

`Authorization: Bearer …` (RFC 6750, 2.1; the scheme in any case, RFC 9110, 11.1) and `x-api-key: …` mean the same and
either may hold either kind. Both with one value are one credential; two different values are refused, because a
gateway that picked one would judge a request by what its sender may not have meant.
"""

from collections.abc import Iterable
from typing import Final

from tidegate.errors import AuthenticationError, InvalidApiKey, InvalidToken, MissingCredentials

MAXIMUM_BYTES: Final = 4096
_KEY_MARK: Final = b"tg_"
_HOW: Final = "send 'Authorization: Bearer <API key or access token>' or 'x-api-key: <API key>'."


def read_credential(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The one credential of a request, `headers` being the ASGI scope's (names in lower case).

    Raises `MissingCredentials` where there is none, `InvalidApiKey` or `InvalidToken` where there are two or it is
    longer than any of ours.
    """
    found: bytes | None = None
    unreadable = False
    for name, value in headers:
        if name == b"authorization":
            credential = _bearer(value)
            unreadable = unreadable or credential is None
        elif name == b"x-api-key":
            credential = value.strip()
        else:
            continue
        if not credential or credential == found:
            continue
        if found is not None:
            raise _refusal(found, credential, "This request carries two different credentials: send one of them.")
        found = credential
    if found is None:
        problem = "The Authorization header is not of the form Bearer" if unreadable else "No credentials were sent"
        raise MissingCredentials(f"{problem}: {_HOW}")
    if len(found) > MAXIMUM_BYTES:
        raise _refusal(found, b"", "The credential is longer than any that this gateway issues: check what is sent.")
    return found


def is_api_key(credential: bytes) -> bool:
    """Whether a credential is judged as an API key; any other is judged as an access token."""
    return credential.startswith(_KEY_MARK)


def _bearer(value: bytes) -> bytes | None:
    """The credential after the scheme, None where the scheme is another."""
    if value[:7].lower() == b"bearer ":
        return value[7:].strip()
    return b"" if value.strip().lower() in {b"", b"bearer"} else None


def _refusal(one: bytes, other: bytes, message: str) -> AuthenticationError:
    return InvalidApiKey(message) if is_api_key(one) or is_api_key(other) else InvalidToken(message)
