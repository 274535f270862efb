"""How much the fuzzers try: a fixed, small number of examples, the same each time, unless a larger run is asked for.

TIDEGATE_FUZZ_EXAMPLES=20000 pytest tests/security -k fuzz --timeout=3600
"""

import time
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.security.fuzzed_api import EXAMPLES

fuzzed = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# Bytes that mean something to a parser, beside all others.
_SIGNS = [b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\r\n", b"\n", b"\x00", b"\xff", b"\xed\xa0\x80", b" "]
_SIGNS += [b"-1", b"0", b"1e400", b"9" * 400, b"null", b"NaN", b"\\ud800", b"[" * 300, b'{"a":' * 300, b"data:"]


def mutated(corpus: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """What is valid, with pieces cut out, doubled, swapped for others of the corpus, and signs and noise put in."""
    return st.builds(_changed, st.sampled_from(corpus), st.lists(_CHANGES, max_size=5), st.sampled_from(corpus))


_CHANGES = st.tuples(
    st.sampled_from(["cut", "double", "insert", "replace", "graft"]),
    st.integers(0, 1 << 16),
    st.integers(0, 64),
    st.one_of(st.sampled_from(_SIGNS), st.binary(max_size=8)),
)


def _changed(seed: bytes, changes: list[tuple[str, int, int, bytes]], other: bytes) -> bytes:
    for how, place, length, piece in changes:
        at = place % (len(seed) + 1)
        end = at + length
        match how:
            case "cut":
                seed = seed[:at] + seed[end:]
            case "double":
                seed = seed[:end] + seed[at:]
            case "insert":
                seed = seed[:at] + piece + seed[at:]
            case "replace":
                seed = seed[:at] + piece + seed[at + len(piece) :]
            case _:
                seed = seed[:at] + other[place % (len(other) + 1) :]
    return seed


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Eight times as much takes far less than sixty-four times as long: the best of three, by the process' own time."""
    small, large = _least_s(work, size), _least_s(work, 8 * size)
    assert large < 24 * small + 0.05, f"{size}: {small:.4f} s, {8 * size}: {large:.4f} s"


def _least_s(work: Callable[[int], object], size: int) -> float:
    times = []
    for _ in range(3):
        began = time.process_time()
        work(size)
        times.append(time.process_time() - began)
    return min(times)
