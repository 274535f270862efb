"""A run's numbers as a table for a person and as a file for a program."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.measures import PHASES

Cell = float | None
Results = dict[str, dict[str, dict[str, Cell]]]
"""By subject, then by measure."""

_ROWS: tuple[tuple[str, str, str, int], ...] = (
    ("CPU a request, not streamed (µs)", "request", "cpu_us", 0),
    ("requests a second, one core", "request", "per_second", 0),
    ("CPU a streamed chunk (µs)", "chunk", "cpu_us", 0),
    ("CPU of a stream's other parts (µs)", "chunk", "stream_cpu_us", 0),
    ("reads a chunk at the client", "chunk", "reads_per_chunk", 2),
    ("whole answer, p50 (ms)", "latency", "whole_p50_ms", 2),
    ("  added", "latency", "whole_p50_added_ms", 2),
    ("whole answer, p99 (ms)", "latency", "whole_p99_ms", 2),
    ("  added", "latency", "whole_p99_added_ms", 2),
    ("time to first token, p50 (ms)", "latency", "first_p50_ms", 2),
    ("  added", "latency", "first_p50_added_ms", 2),
    ("time to first token, p99 (ms)", "latency", "first_p99_ms", 2),
    ("memory idle (MB)", "open-streams", "idle_mb", 0),
    ("memory with 1,000 streams open (MB)", "open-streams", "held_mb", 0),
    ("  an open stream (kB)", "open-streams", "per_stream_kb", 0),
    ("CPU a request beside 1,000 streams (µs)", "open-streams", "request_cpu_us", 0),
    ("1,000 hang-ups at once, the last (ms)", "open-streams", "all_closed_ms", 0),
    *((f"hang-up, {phase}, p95 (ms)", f"hang-up {phase}", "p95_ms", 1) for phase in PHASES),
    ("CPU at the gate, a request (µs)", "gate", "cpu_us", 1),
    ("  the least of its rounds", "gate", "least_us", 1),
    ("  its bound", "gate", "bound_us", 0),
    ("  four PINGs in the place of its steps", "gate", "pings_us", 1),
    ("Redis' own CPU, a request (µs)", "gate", "redis_cpu_us", 1),
    ("rounds in which Redis was too slow", "gate", "dropped", 0),
)


def table(results: Results) -> str:
    """Rows of measures, a column for each subject; what was not measured is left blank, a dash is no such thing."""
    subjects = list(results)
    lines = [["", *subjects]]
    for title, measure, number, digits in _ROWS:
        cells = [_cell(results[subject].get(measure), number, digits) for subject in subjects]
        if any(cells):
            lines.append([title, *cells])
    for title, measure in ((f"  never seen, {phase}", f"hang-up {phase}") for phase in PHASES):
        unseen = [results[subject].get(measure, {}).get("unseen") for subject in subjects]
        if any(unseen):
            lines.append([title, *(str(count or "") for count in unseen)])
    return _aligned(lines)


def save(results: Results, facts: Mapping[str, object], size: Mapping[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"facts": facts, "size": size, "results": results}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _cell(numbers: Mapping[str, Cell] | None, number: str, digits: int) -> str:
    if numbers is None or number not in numbers:
        return ""
    value = numbers[number]
    return "–" if value is None else f"{value:,.{digits}f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    justify: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    rows = (
        "  ".join(fit(cell, width) for fit, cell, width in zip(justify, line, widths, strict=True)) for line in lines
    )
    return "\n".join(row.rstrip() for row in rows)
