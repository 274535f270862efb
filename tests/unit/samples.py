"""What several unit tests of the road are made of: cut streams, prices, entries, a store that fails when told."""

from collections.abc import Iterable

from hypothesis import strategies as st


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """The stream in pieces, cut at these places."""
    bounds = [0, *places, len(stream)]
    return [stream[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


def cuttings(stream: bytes) -> st.SearchStrategy[list[bytes]]:
    """Every way to cut a stream into pieces, empty ones included."""
    places = st.lists(st.integers(0, len(stream)), max_size=8).map(sorted)
    return places.map(lambda at: cut(stream, at))
