"""Passwords: equal work whoever is asked for, never on the loop, never more than two at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from tests.support.waiting import eventually
from tidegate.auth.passwords import Passwords
from tidegate.errors import Overloaded


class CountingHasher(Argon2Hasher):
    """Argon2 with the smallest parameters, which counts its computations and where they ran."""

    def __init__(self, *, memory_cost: int = 8, during: Callable[[], object] = lambda: None) -> None:
        super().__init__(time_cost=1, memory_cost=memory_cost, parallelism=1)
        self.computations = 0
        self.threads: set[int] = set()
        self.at_once = self.most_at_once = 0
        self._during = during
        self._lock = threading.Lock()

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        with self._counted():
            return super().hash(password, salt=salt)

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002 - the protocol's name
        with self._counted():
            return super().verify(password, hash)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self.computations += 1
            self.threads.add(threading.get_ident())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._during()
            yield
        finally:
            with self._lock:
                self.at_once -= 1


async def test_a_password_opens_its_own_hash_alone() -> None:
    passwords = Passwords(PasswordHash((CountingHasher(),)))
    stored = await passwords.hash("correct horse battery")
    assert (await passwords.verify("correct horse battery", stored)).is_right
    assert not (await passwords.verify("correct horse", stored)).is_right
    assert not (await passwords.verify("correct horse battery", None)).is_right
    assert not (await passwords.verify("correct horse battery", "no hash at all")).is_right


async def test_an_account_that_does_not_exist_costs_one_computation_as_one_that_does() -> None:
    hasher = CountingHasher()
    passwords = Passwords(PasswordHash((hasher,)))
    stored = await passwords.hash("correct horse battery")
    costs = []
    for password, of in (("wrong", stored), ("correct horse battery", stored), ("wrong", None)):
        before = hasher.computations
        await passwords.verify(password, of)
        costs.append(hasher.computations - before)
    assert costs == [1, 1, 1]


async def test_a_hash_of_older_parameters_is_replaced_once_it_was_right() -> None:
    stored = await Passwords(PasswordHash((CountingHasher(memory_cost=8),))).hash("correct horse battery")
    passwords = Passwords(PasswordHash((CountingHasher(memory_cost=16),)))
    assert (await passwords.verify("wrong", stored)).better_hash is None
    better = (await passwords.verify("correct horse battery", stored)).better_hash
    assert better is not None
    assert better not in repr(await passwords.verify("correct horse battery", stored))
    assert (await passwords.verify("correct horse battery", better)).better_hash is None


async def test_at_most_two_run_at_once_and_none_on_the_loop() -> None:
    gate = threading.Event()
    hasher = CountingHasher(during=lambda: gate.wait(30))
    passwords = Passwords(PasswordHash((hasher,)))
    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(passwords.hash, "correct horse battery")
        await eventually(lambda: hasher.at_once == 2)
        gate.set()
    assert hasher.computations == 6
    assert hasher.most_at_once == 2
    assert threading.get_ident() not in hasher.threads


async def test_a_flood_of_sign_ins_is_refused_past_its_bound() -> None:
    gate = threading.Event()
    hasher = CountingHasher(during=lambda: gate.wait(30))
    passwords = Passwords(PasswordHash((hasher,)))
    refused = 0

    async def attempt() -> None:
        nonlocal refused
        try:
            await passwords.verify("wrong", None)
        except Overloaded:
            refused += 1

    async with anyio.create_task_group() as group:
        for _ in range(70):
            group.start_soon(attempt)
        await eventually(lambda: refused == 4)
        gate.set()
    assert hasher.computations == 66


def test_the_hash_in_use_is_argon2id_with_at_least_the_usual_cost() -> None:
    stored = Argon2Hasher().hash("correct horse battery")
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


@pytest.mark.parametrize("password", ["p\x00ss", "ü" * 500, " "])
async def test_any_text_is_a_password(password: str) -> None:
    passwords = Passwords(PasswordHash((CountingHasher(),)))
    stored = await passwords.hash(password)
    assert (await passwords.verify(password, stored)).is_right
    assert not (await passwords.verify(password + "x", stored)).is_right
