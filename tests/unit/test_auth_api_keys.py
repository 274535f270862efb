"""API keys: their form, their hashes, and how one is recognised."""

import re

import pytest

from tidegate.auth.api_keys import StoredHash, generate_key, hash_key, is_current, prefix_of, verify_key
from tidegate.auth.keyring import Keyring

PEPPERS = Keyring({"2": b"b" * 32, "1": b"a" * 32})


def test_a_key_has_the_contracts_form() -> None:
    key = generate_key()
    assert re.fullmatch(r"tg_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", key.secret)
    assert prefix_of(key.secret) == key.prefix


def test_keys_differ_in_prefix_and_secret() -> None:
    keys = [generate_key() for _ in range(100)]
    assert len({key.prefix for key in keys}) == 100
    assert len({key.secret[12:] for key in keys}) == 100


@pytest.mark.parametrize(
    "text",
    ["", "tg_", "tg_abcdefgh", "sk-" + "a" * 51, "tg_ABCDEFGH_" + "x" * 43, "tg_abcdefgh_" + "x" * 42]
    + ["tg_abcdefgh_" + "x" * 43 + end for end in ("y", "\n", " ", "\x00")],
)
def test_what_has_not_the_form_has_no_prefix(text: str) -> None:
    assert prefix_of(text) is None


def test_a_key_is_recognised_by_its_hash_alone() -> None:
    key, other = generate_key(), generate_key()
    stored = hash_key(key.secret, PEPPERS)
    assert verify_key(key.secret, stored, PEPPERS)
    assert not verify_key(other.secret, stored, PEPPERS)
    assert not verify_key(key.secret[:-1] + ("A" if key.secret[-1] != "A" else "B"), stored, PEPPERS)


def test_the_first_pepper_hashes_and_every_pepper_verifies() -> None:
    key = generate_key()
    old = hash_key(key.secret, Keyring({"1": b"a" * 32}))
    assert hash_key(key.secret, PEPPERS).pepper_kid == "2"
    assert verify_key(key.secret, old, PEPPERS)


def test_a_key_of_an_unknown_pepper_or_scheme_is_not_recognised() -> None:
    key = generate_key()
    stored = hash_key(key.secret, PEPPERS)
    assert not verify_key(key.secret, stored, Keyring({"3": b"b" * 32}))
    assert not verify_key(key.secret, StoredHash(stored.secret_hash, "plain-sha256", "2"), PEPPERS)
    assert not verify_key(key.secret, StoredHash(stored.secret_hash, stored.hash_scheme, None), PEPPERS)


def test_one_kid_with_another_secret_recognises_nothing() -> None:
    key = generate_key()
    assert not verify_key(key.secret, hash_key(key.secret, PEPPERS), Keyring({"2": b"c" * 32}))


def test_neither_secret_nor_hash_is_in_a_repr() -> None:
    key = generate_key()
    stored = hash_key(key.secret, PEPPERS)
    assert key.secret[12:] not in repr(key)
    assert repr(stored.secret_hash) not in repr(stored)
    assert stored.secret_hash.hex() not in repr(stored)


class CountedKey(str):
    """A key that counts how often it is hashed: each HMAC encodes it."""

    __slots__ = ("hashed",)

    def __init__(self, _: str) -> None:
        self.hashed = 0

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        self.hashed += 1
        return super().encode(encoding, errors)


def test_every_judgement_is_the_same_work_whatever_is_stored() -> None:
    key, other = generate_key(), generate_key()
    right, wrong = hash_key(key.secret, PEPPERS), hash_key(other.secret, PEPPERS)
    cases: dict[str, StoredHash | None] = {
        "right": right,
        "wrong": wrong,
        "unknown prefix": None,
        "unknown pepper": StoredHash(right.secret_hash, right.hash_scheme, "9"),
        "no pepper": StoredHash(right.secret_hash, right.hash_scheme, None),
        "unknown scheme": StoredHash(right.secret_hash, "plain-sha256", right.pepper_kid),
    }
    for name, stored in cases.items():
        counted = CountedKey(key.secret)
        assert verify_key(counted, stored, PEPPERS) is (name == "right")
        assert counted.hashed == 1, name


def test_nothing_stored_recognises_nothing() -> None:
    # Not even what would hash to the stand-in that is compared with.
    assert not verify_key(generate_key().secret, None, PEPPERS)


def test_a_hash_is_current_under_the_first_pepper_alone() -> None:
    key = generate_key()
    assert is_current(hash_key(key.secret, PEPPERS), PEPPERS)
    old = hash_key(key.secret, Keyring({"1": b"a" * 32}))
    assert not is_current(old, PEPPERS)
    assert not is_current(StoredHash(old.secret_hash, "plain-sha256", "2"), PEPPERS)
