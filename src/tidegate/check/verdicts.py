"""What a check says of an item: one verdict of the five, and the evidence for it.

Unknown is never a pass, and neither is partial. Evidence is what was seen, in one line, and for anything but a pass
what to do about it. It never holds a secret.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tidegate.check.subject import Disagreement, Subject

Verdict = Literal["pass", "fail", "partial", "not_applicable", "unknown"]
HARMLESS: tuple[Verdict, ...] = ("pass", "not_applicable")

Judged = tuple[Verdict, str]


@dataclass(frozen=True, slots=True)
class Check:
    """One item of the list: what it is called, and what decides it."""

    id: str
    title: str
    judge: Callable[[Subject], Judged]


@dataclass(frozen=True, slots=True)
class Finding:
    """One item, judged."""

    id: str
    title: str
    verdict: Verdict
    evidence: str

    @property
    def is_harmless(self) -> bool:
        return self.verdict in HARMLESS


def judged(check: Check, subject: Subject) -> Finding:
    """Never raises: a fact that is missing, or of another form, makes an item unknown."""
    try:
        verdict, evidence = check.judge(subject)
    except Disagreement as error:
        verdict, evidence = "fail", str(error)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        verdict = "unknown"
        evidence = f"the server does not tell it ({type(error).__name__}: {error}): is it another version than this?"
    return Finding(check.id, check.title, verdict, evidence)
