"""Which passwords are refused, and that one is the same from whatever keyboard."""

import time
import unicodedata

import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from tests.support.credentials import quick_passwords
from tests.support.people import CountingHasher
from tidegate.auth.guessing import is_guessed_soon
from tidegate.auth.passwords import Passwords, fault_of
from tidegate.errors import ValidationFailed

EMAIL = "ada.lovelace@example.com"
GOOD = "correct horse battery"


@pytest.mark.parametrize(
    "password",
    [
        "password1234",
        "P@ssw0rd1234",
        "qwertyuiop123",
        "aaaaaaaaaaaaaaaa",
        "123456789012",
        "abcdefghijkl",
        "ada.lovelace@example.com",
        "AdaLovelace1",
        "adalovelaceexamplecom",
        "tidegatetidegate",
        "a" * 1024,
        "password" * 100,
    ],
)
def test_a_password_that_is_guessed_first_is_refused(password: str) -> None:
    assert is_guessed_soon(password, EMAIL)
    fault = fault_of(password, EMAIL)
    assert fault is not None
    assert "several words" in fault


@pytest.mark.parametrize(
    "password", [GOOD, "correct-horse-battery-staple", "q7#Lm2!vXz9w", "пароль из многих разных слов", GOOD * 48]
)
def test_a_password_of_several_words_is_taken(password: str) -> None:
    assert fault_of(password, EMAIL) is None


def test_a_password_is_counted_by_what_is_seen() -> None:
    eleven = unicodedata.normalize("NFD", "éÅñöüçàèùâê")
    assert len(eleven) > 12
    assert fault_of(eleven, EMAIL) == fault_of("short", EMAIL) == "must have 12 to 1024 characters"
    assert fault_of("x" * 1025, EMAIL) == "must have 12 to 1024 characters"


def test_one_address_s_parts_are_not_judged_against_another_s_password() -> None:
    assert is_guessed_soon("grace.hopper@navy.example", "grace.hopper@navy.example")
    assert not is_guessed_soon("grace.hopper@navy.example", EMAIL)


def test_the_worst_password_to_judge_is_judged_in_bounded_time() -> None:
    worst = "4@8({[<3691!|0$5+7%2" * 51
    started = time.process_time()
    is_guessed_soon(worst, EMAIL)
    assert time.process_time() - started < 10


async def test_what_is_chosen_is_judged_and_what_is_made_up_is_not() -> None:
    passwords = quick_passwords()
    with pytest.raises(ValidationFailed) as refusal:
        await passwords.choose("password1234", email=EMAIL)
    assert refusal.value.errors[0]["loc"] == ["body", "password"]
    assert "password1234" not in str(refusal.value.detail())
    assert (await passwords.verify(GOOD, await passwords.choose(GOOD, email=EMAIL))).is_right


async def test_a_password_opens_the_account_in_whichever_form_a_keyboard_writes_it() -> None:
    passwords = quick_passwords()
    composed, apart = (unicodedata.normalize(form, "crème brûlée naïve") for form in ("NFC", "NFD"))
    assert composed != apart
    for chosen in (composed, apart):
        stored = await passwords.choose(chosen, email=EMAIL)
        for typed in (composed, apart):
            verdict = await passwords.verify(typed, stored)
            assert (verdict.is_right, verdict.better_hash) == (True, None)
        # Compatibility forms are passwords of their own.
        assert not (await passwords.verify(composed.replace("e", "ｅ"), stored)).is_right


async def test_a_password_that_was_stored_as_it_was_typed_opens_the_account_and_is_stored_anew() -> None:
    scheme = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
    apart = unicodedata.normalize("NFD", "crème brûlée naïve")
    verdict = await Passwords(scheme).verify(apart, scheme.hash(apart))
    assert verdict.is_right
    assert verdict.better_hash is not None
    assert (await Passwords(scheme).verify(unicodedata.normalize("NFC", apart), verdict.better_hash)).is_right


@pytest.mark.parametrize("typed", ["a wrong password", unicodedata.normalize("NFD", "une crème fausse")])
async def test_a_wrong_password_costs_the_same_for_a_known_and_an_unknown_account(typed: str) -> None:
    hasher = CountingHasher()
    passwords = Passwords(PasswordHash((hasher,)))
    stored = await passwords.hash(GOOD)
    costs = []
    for account in (stored, None):
        before = hasher.computations
        assert not (await passwords.verify(typed, account)).is_right
        costs.append(hasher.computations - before)
    assert costs[0] == costs[1]
