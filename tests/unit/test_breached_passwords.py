"""A password of a file of breached ones is refused, wherever in the file it stands and whatever its lines are like."""

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.credentials import quick_passwords
from tidegate.auth.breached import BreachedPasswords
from tidegate.auth.passwords import Passwords
from tidegate.errors import Unavailable, ValidationFailed
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings

LEAKED = [f"a leaked password {n}" for n in range(300)]
EMAIL = "ada@example.com"


def _hash(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


def _written(folder: Path, line: str = "{hash}:{count}\n", passwords: list[str] = LEAKED) -> Path:
    path = folder / "breached.txt"
    hashes = sorted(_hash(password) for password in passwords)
    path.write_bytes("".join(line.format(hash=each, count=7**n) for n, each in enumerate(hashes)).encode())
    return path


@pytest.mark.parametrize("line", ["{hash}:{count}\n", "{hash}\n", "{hash}:{count}\r\n"])
def test_every_password_of_the_file_is_found_and_no_other(tmp_path: Path, line: str) -> None:
    breached = BreachedPasswords(_written(tmp_path, line))
    assert all(password in breached for password in LEAKED)
    assert not any(f"another password {n}" in breached for n in range(300))


def test_the_last_line_needs_no_end_and_small_letters_are_read(tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_text(path.read_text().rstrip("\n").lower())
    breached = BreachedPasswords(path)
    assert all(password in breached for password in LEAKED)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_file_of_few_lines_is_read(tmp_path: Path, n: int) -> None:
    breached = BreachedPasswords(_written(tmp_path, passwords=LEAKED[:n]))
    assert [password in breached for password in LEAKED[:3]] == [True] * n + [False] * (3 - n)


async def test_nobody_chooses_one_in_either_form_and_one_that_is_set_still_opens(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9 under seven moons", "cafe\u0301 under seven moons"
    settings = Settings(
        environment="test",
        auth=AuthSettings(breached_passwords_file=_written(tmp_path, passwords=[LEAKED[0], composed])),
    )
    passwords = Passwords.of(settings)
    for password in (LEAKED[0], composed, decomposed):
        with pytest.raises(ValidationFailed) as refused:
            await passwords.choose(password, email=EMAIL)
        assert "has leaked" in refused.value.errors[0]["message"]
    assert await passwords.choose("glacier mango tuba 41", email=EMAIL)
    before = await quick_passwords().hash(LEAKED[0])
    assert (await passwords.verify(LEAKED[0], before)).is_right


async def test_where_the_file_is_gone_nobody_chooses_unjudged(tmp_path: Path) -> None:
    path = _written(tmp_path)
    passwords = Passwords.of(Settings(environment="test", auth=AuthSettings(breached_passwords_file=path)))
    path.unlink()
    with pytest.raises(Unavailable, match="TIDEGATE_AUTH__BREACHED_PASSWORDS_FILE"):
        await passwords.choose("glacier mango tuba 41", email=EMAIL)


@pytest.mark.parametrize("text", ["", "password\n", "5BAA61E4C9B93F3F\n"])
def test_a_file_of_something_else_stops_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "breached.txt"
    path.write_text(text)
    with pytest.raises(ValidationError, match="SHA-1"):
        AuthSettings(breached_passwords_file=path)
    with pytest.raises(ValidationError, match="cannot be read"):
        AuthSettings(breached_passwords_file=tmp_path / "nowhere")
