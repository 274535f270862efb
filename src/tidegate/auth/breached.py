"""Passwords that leaked, in a file that who runs the gateway brings: nothing is asked over a network.

The file has one SHA-1 a line, in hexadecimal and sorted, whatever stands behind a colon: the form in which Have I Been
Pwned gives its passwords to be downloaded. It may have gigabytes: a look-up reads some forty lines of it.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO, Final

_LONGEST_LINE: Final = 1024


class BreachedPasswords:
    """The passwords of such a file.

    >>> "password" in BreachedPasswords(settings.auth.breached_passwords_file)
    True
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __contains__(self, password: str) -> bool:
        """Reads the file, so not on the loop. Raises `OSError`."""
        wanted = hashlib.sha1(password.encode("utf-8"), usedforsecurity=False).hexdigest().upper().encode()
        with self._path.open("rb") as file:
            return _hash_at(file, _place_of(file, wanted)) == wanted


def _place_of(file: BinaryIO, wanted: bytes) -> int:
    """Where in the file the first line begins that is not before the wanted one, or a place in the line before it."""
    low, high = 0, file.seek(0, 2)
    while low < high:
        middle = (low + high) // 2
        found = _hash_at(file, middle)
        if found and found < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def _hash_at(file: BinaryIO, place: int) -> bytes:
    """The hash of the first line that begins there or after it; empty at the file's end."""
    file.seek(max(0, place - 1))
    if place > 0:
        # The rest of the line before it, or its end alone.
        file.readline(_LONGEST_LINE)
    return file.readline(_LONGEST_LINE).partition(b":")[0].strip().upper()
