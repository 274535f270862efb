import orjson
import pytest

from tidegate.server.refusal import print_faults


def test_each_fault_is_a_line_of_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_faults(["one", "two\nand more"], as_json=False)
    assert capsys.readouterr() == ("", "one\ntwo; and more\n")


def test_in_production_each_line_is_json_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    print_faults(["cannot reach postgresql+asyncpg://tide:hunter22@db/x"], as_json=True)
    (line,) = capsys.readouterr().err.splitlines()
    fault = orjson.loads(line)
    assert {"ts", "level", "event", "logger", "pid"} <= fault.keys()
    assert fault["level"] == "error"
    assert "hunter22" not in line
