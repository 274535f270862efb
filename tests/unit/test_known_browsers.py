"""The cookie of a browser that somebody logged in with before: believed for that account alone, and while it lasts."""

import pytest

from tidegate.accounts.known_browsers import LIFETIME_S, KnownBrowsers
from tidegate.auth.keyring import Keyring

EMAIL = "ada@example.com"
OLD, NEW = {"1": b"an old secret of the deployment"}, {"2": b"a new secret of the deployment"}


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_it_is_believed_for_its_account_however_that_is_written() -> None:
    browsers = KnownBrowsers(Keyring(OLD))
    cookie = browsers.remembered(EMAIL, None)
    known = browsers.recognised(EMAIL, cookie)
    assert known
    assert browsers.recognised(" ADA@Example.com ", cookie) == known
    assert browsers.recognised("grace@example.com", cookie) is None
    assert EMAIL not in cookie
    assert "ada" not in cookie


def test_a_browser_that_logs_in_again_keeps_its_name_and_each_has_its_own() -> None:
    browsers = KnownBrowsers(Keyring(OLD))
    first = browsers.remembered(EMAIL, None)
    assert browsers.recognised(EMAIL, browsers.remembered(EMAIL, first)) == browsers.recognised(EMAIL, first)
    assert browsers.recognised(EMAIL, browsers.remembered(EMAIL, None)) != browsers.recognised(EMAIL, first)
    other = browsers.remembered("grace@example.com", first)
    assert browsers.recognised("grace@example.com", other) != browsers.recognised(EMAIL, first)


def test_it_ends() -> None:
    clock = Clock()
    browsers = KnownBrowsers(Keyring(OLD), clock=clock)
    cookie = browsers.remembered(EMAIL, None)
    clock.now += LIFETIME_S - 1
    assert browsers.recognised(EMAIL, cookie)
    clock.now += 1
    assert browsers.recognised(EMAIL, cookie) is None


def test_it_outlives_a_rotation_and_ends_with_its_key() -> None:
    cookie = KnownBrowsers(Keyring(OLD)).remembered(EMAIL, None)
    assert KnownBrowsers(Keyring(NEW | OLD)).recognised(EMAIL, cookie)
    assert KnownBrowsers(Keyring(NEW)).recognised(EMAIL, cookie) is None


@pytest.mark.parametrize("part", [0, 1, 2])
def test_nobody_writes_one_or_changes_it(part: int) -> None:
    browsers = KnownBrowsers(Keyring(OLD))
    parts = browsers.remembered(EMAIL, None).split(".")
    parts[part] = parts[part][:-2] + ("11" if parts[part][-2:] != "11" else "22")
    assert browsers.recognised(EMAIL, ".".join(parts)) is None


@pytest.mark.parametrize("cookie", [None, "", ".", "a.b.c", "x" * 5000, "ü.1.ü"])
def test_what_is_none_is_none(cookie: str | None) -> None:
    assert KnownBrowsers(Keyring(OLD)).recognised(EMAIL, cookie) is None
