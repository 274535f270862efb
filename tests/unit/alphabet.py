"""Every character that a text may have, for Hypothesis.

The same as its default, the characters that UTF-8 can encode. Said by category it need not try each, which takes 3 s
of CPU in each process until `.hypothesis/` remembers the answer.
"""

from hypothesis import strategies as st

CHARACTERS = st.characters(exclude_categories=["Cs"])
