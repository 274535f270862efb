"""The benchmark's table and its arithmetic."""

import json
from pathlib import Path

import pytest
from benchmarks.measures import percentile
from benchmarks.report import Results, save, table

RESULTS: Results = {
    "direct": {"request": {"cpu_us": None, "per_second": 9000.0}, "hang-up mid-stream": {"p95_ms": 0.1, "unseen": 0}},
    "tidegate": {
        "request": {"cpu_us": 1299.6, "per_second": 700.0},
        "hang-up mid-stream": {"p95_ms": 4.0, "unseen": 2},
    },
}


def test_the_table_has_a_column_for_each_subject_and_a_row_for_each_measure() -> None:
    rows = [line.split("  ") for line in table(RESULTS).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["direct", "tidegate"],
        ["CPU a request, not streamed (µs)", "–", "1,300"],
        ["requests a second, one core", "9,000", "700"],
        ["hang-up, mid-stream, p95 (ms)", "0.1", "4.0"],
        ["never seen, mid-stream", "2"],
    ]


def test_the_file_has_the_numbers_and_what_they_were_measured_on(tmp_path: Path) -> None:
    path = tmp_path / "results" / "run.json"
    save(RESULTS, {"cpu": "a cpu"}, {"hang_ups": 50}, path)
    assert json.loads(path.read_text()) == {
        "facts": {"cpu": "a cpu"},
        "size": {"hang_ups": 50},
        "results": RESULTS,
    }


@pytest.mark.parametrize(
    ("values", "share", "expected"), [([1.0], 95, 1.0), ([1.0, 2.0, 3.0], 50, 2.0), (list(range(101)), 95, 95.0)]
)
def test_a_percentile_is_the_value_that_so_many_do_not_exceed(values: list[float], share: int, expected: float) -> None:
    assert percentile(values, share) == expected


def test_the_gate_is_told_beside_its_bound_and_what_it_stands_on() -> None:
    at_gate: Results = {
        "memory": {"gate": {"cpu_us": 12.34, "least_us": 11.0, "bound_us": 15.0}},
        "Redis": {"gate": {"cpu_us": 90.0, "least_us": 80.0, "bound_us": 100.0, "pings_us": 24.5, "dropped": 0}},
    }
    rows = [line.split("  ") for line in table(at_gate).splitlines()]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["memory", "Redis"],
        ["CPU at the gate, a request (µs)", "12.3", "90.0"],
        ["the least of its rounds", "11.0", "80.0"],
        ["its bound", "15", "100"],
        ["four PINGs in the place of its steps", "24.5"],
        ["rounds in which Redis was too slow", "0"],
    ]
