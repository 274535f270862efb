"""What `tidegate check` prints: five sections with a line for each item, and how many passed."""

from collections.abc import Sequence
from itertools import groupby

import click

from tidegate.check.items import SECTIONS
from tidegate.check.structure import some
from tidegate.check.subject import Subject
from tidegate.check.verdicts import Finding, Verdict
from tidegate.telemetry.logging import visible

_COLOURS: dict[Verdict, str] = {
    "pass": "green",
    "fail": "red",
    "partial": "yellow",
    "not_applicable": "bright_black",
    "unknown": "yellow",
}
_WIDEST_VERDICT = max(map(len, _COLOURS))


def print_report(subject: Subject, found: Sequence[Finding], *, colours: bool) -> None:
    """For people."""
    version, url = subject.root["version"], subject.root["url"]
    _say(f"{subject.environment}, version {version}, {some(len(subject.workers), 'worker')}, {url}")
    if subject.differs_from_shell:
        groups = ", ".join(subject.differs_from_shell)
        _say(f"This shell's settings differ from the server's in: {groups}. What follows is the server's.")
    titles = [title for title, _ in SECTIONS]
    for section, items in groupby(found, key=lambda finding: finding.id.partition(".")[0]):
        listed = list(items)
        _say(f"\n{section} {titles[int(section) - 1]}: {_passed(listed)}/{len(listed)}")
        widest = max(len(finding.title) for finding in listed)
        for finding in listed:
            verdict = finding.verdict.ljust(_WIDEST_VERDICT)
            shown = click.style(verdict, fg=_COLOURS[finding.verdict]) if colours else verdict
            _say(f"  {shown}  {finding.id}  {finding.title.ljust(widest)}  {visible(finding.evidence)}")
    spared = sum(finding.verdict == "not_applicable" for finding in found)
    _say(f"\n{_passed(found)} of {len(found)} pass{f', {spared} not applicable' if spared else ''}.")


def as_json(subject: Subject, found: Sequence[Finding]) -> dict[str, object]:
    """For programs."""
    return {
        "items": [
            {"id": each.id, "title": each.title, "verdict": each.verdict, "evidence": each.evidence} for each in found
        ],
        "passed": _passed(found),
        "environment": subject.environment,
        "version": subject.root["version"],
        "workers": len(subject.workers),
        "settings_differ_in": list(subject.differs_from_shell),
    }


def _passed(found: Sequence[Finding]) -> int:
    return sum(finding.verdict == "pass" for finding in found)


def _say(line: str) -> None:
    click.echo(line, color=True)
