"""SECURITY.md and the pages behind it say which test shows what: each exists, and each attack names one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
# With how many tests each names at least.
PAGES = {"SECURITY.md": 30, "docs/security/asvs.md": 200, "docs/security/inventory.md": 1}
_NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")


@pytest.mark.parametrize(("page", "at_least"), PAGES.items())
def test_every_test_that_the_threat_model_names_exists(page: str, at_least: int) -> None:
    named = _NAMED.findall((ROOT / page).read_text("utf-8"))
    assert len(named) >= at_least
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or (name and not re.search(rf"def {name}\(", (ROOT / path).read_text("utf-8")))
    ]
    assert not missing


def test_every_attack_names_a_test() -> None:
    attacks = PAGE.partition("## What an attack meets")[2].partition("\n## ")[0]
    rows = [line for line in attacks.splitlines() if line.startswith("| ") and not line.startswith("| attack")]
    assert len(rows) > 20
    assert not [row for row in rows if not _NAMED.search(row)]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_that_it_points_to_exists(page: str) -> None:
    here = ROOT / page
    for path, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", here.read_text("utf-8"))):
        text = (here.parent / path if path else here).read_text("utf-8")
        headings = {
            re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in text.splitlines()
            if line.startswith("#")
        }
        assert not anchor or anchor in headings, f"{path}#{anchor}"
