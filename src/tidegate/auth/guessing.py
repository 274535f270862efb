"""Passwords that others guess: judged by the lists that zxcvbn ships, with nothing asked over a network."""

import re
from collections.abc import Sequence
from typing import Final

# 4 is the best; 3 is a guess in 10^8 to 10^10.
LOWEST_SCORE: Final = 3
# What it takes grows with the cube of the length: at worst 0.7 s of CPU for 40 characters and 3 s for 72.
_JUDGED_CHARACTERS: Final = 40
_PRODUCT: Final = "tidegate"
_SIGNS: Final = r"[^0-9a-z]+"


def is_guessed_soon(password: str, email: str) -> bool:
    """Whether one who knows the lists, the address and this product guesses a password soon.

    Up to a second of CPU, so not on the loop. Judged is how the password begins: nothing that follows makes it easier.
    """
    # Imported here: its lists take 40 ms, and most processes judge no password.
    from zxcvbn import matching, scoring, time_estimates  # type: ignore[import-untyped]  # noqa: PLC0415

    # By its parts, because `zxcvbn()` keeps what a password is judged against in one dictionary of the whole process.
    known = {**matching.RANKED_DICTIONARIES, "user_inputs": matching.build_ranked_dict(_known_of(email))}
    begins = password[:_JUDGED_CHARACTERS]
    found = scoring.most_guessable_match_sequence(begins, matching.omnimatch(begins, known))
    score: int = time_estimates.estimate_attack_times(found["guesses"])["score"]
    return score < LOWEST_SCORE


def _known_of(email: str) -> Sequence[str]:
    lowered = email.lower()
    wholes = [lowered, *lowered.split("@")]
    joined = [re.sub(_SIGNS, "", whole) for whole in wholes]
    return [part for part in dict.fromkeys([*wholes, *joined, *re.split(_SIGNS, lowered), _PRODUCT]) if part]
