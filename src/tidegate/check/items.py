"""The 25 items, in their five sections."""

from tidegate.check import protection, running, storage, streams, structure
from tidegate.check.subject import Subject
from tidegate.check.verdicts import Finding, judged

SECTIONS = (
    ("Structure", structure.CHECKS),
    ("Database and cache", storage.CHECKS),
    ("Security", protection.CHECKS),
    ("Streams", streams.CHECKS),
    ("Production", running.CHECKS),
)


def findings(subject: Subject) -> list[Finding]:
    """One an item, in their order."""
    return [judged(check, subject) for _, checks in SECTIONS for check in checks]
