"""Counting is an estimate that never fails, whatever the text spells, and never holds up the loop."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.upstream.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    tokenizer = Tokenizer()
    yield tokenizer
    tokenizer.close()


async def test_no_text_is_no_tokens_and_loads_nothing() -> None:
    tokenizer = Tokenizer()
    assert await tokenizer.count("") == 0
    assert tokenizer._encoding is None
    tokenizer.close()


@pytest.mark.parametrize(("text", "tokens"), [("Hello", 1), ("Hello world, this is a test.", 8), (" ", 1)])
async def test_it_counts_as_the_model_would(tokenizer: Tokenizer, text: str, tokens: int) -> None:
    assert await tokenizer.count(text) == tokens


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|endofprompt|>", "a <|endoftext|> b"])
async def test_text_that_spells_a_special_token_is_text(tokenizer: Tokenizer, special: str) -> None:
    assert await tokenizer.count(special) > 1


@settings(deadline=None, max_examples=40)
@given(st.text(CHARACTERS, min_size=1, max_size=200))
async def test_every_text_has_a_count_of_at_most_its_bytes_and_cuts(tokenizer: Tokenizer, text: str) -> None:
    count = await tokenizer.count(text)
    assert 0 <= count <= len(text.encode()) + len(text) // 64 + 1


async def test_a_long_text_is_counted_by_its_beginning(tokenizer: Tokenizer) -> None:
    one = await tokenizer.count("The quick brown fox jumps. " * 100)
    assert await tokenizer.count("The quick brown fox jumps. " * 10_000) == pytest.approx(100 * one, rel=0.02)


async def test_a_count_is_cancelled_with_its_task(tokenizer: Tokenizer) -> None:
    task = asyncio.create_task(tokenizer.count("some text " * 5000))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await tokenizer.count("Hello") == 1
