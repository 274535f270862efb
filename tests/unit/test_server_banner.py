import subprocess
from pathlib import Path

import orjson

from tidegate.server.banner import banner, curl_line

URL = "http://127.0.0.1:8000"


def test_what_was_made_is_shown_and_nothing_else(tmp_path: Path) -> None:
    made = {"admin_email": "a@b.example", "admin_password": "low-tide", "api_key": "tg_x"}
    first, later = banner(URL, tmp_path, "m", made), banner(URL, tmp_path, "m", None)
    for text in ("a@b.example", "low-tide", "tg_x"):
        assert text in first
        assert text not in later
    for text in (f"{URL}/v1", f"{URL}/"):
        assert text in later


def test_a_key_alone_is_shown(tmp_path: Path) -> None:
    text = banner(URL, tmp_path, "m", {"api_key": "tg_x", "api_key_file": "f"})
    assert "tg_x" in text
    assert "password" not in text


def test_a_shell_takes_the_curl_line_whatever_its_names_hold(tmp_path: Path) -> None:
    folder = tmp_path / "it's $HOME 'tide'"
    folder.mkdir()
    (folder / "first-key").write_text("tg_secret\n")
    line = curl_line(URL, folder / "first-key", 'it\'s `a` "model"')
    assert "\n" not in line
    assert "tg_secret" not in line
    arguments = as_a_shell_takes(line)
    assert arguments[:2] == ["-N", f"{URL}/v1/chat/completions"]
    assert arguments[3] == "Authorization: Bearer tg_secret"
    body = orjson.loads(arguments[-1])
    assert body["model"] == 'it\'s `a` "model"'
    assert body["stream"] is True


def as_a_shell_takes(line: str) -> list[str]:
    """The arguments that `curl` would get."""
    script = """curl() { for argument; do printf '%s\\n' "$argument"; done; }\n""" + line
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


def test_without_a_generated_key_the_caller_puts_in_their_own(tmp_path: Path) -> None:
    assert "Bearer YOUR_KEY" in curl_line(URL, tmp_path / "first-key", "m")
