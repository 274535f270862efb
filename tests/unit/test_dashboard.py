"""The pages: files of the package, under a policy that lets them run nothing of their own."""

import re
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from tests.support.pages import get_page
from tidegate.dashboard.files import PAGE_POLICY, Html, asset, page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(file.name for file in (files("tidegate.dashboard") / "pages").iterdir())
ASSETS = sorted(file.name for file in (files("tidegate.dashboard") / "assets").iterdir())


async def test_the_page_has_its_policy_and_is_kept_nowhere() -> None:
    answer = await get_page("/", host="gateway.example.com:8000")
    assert answer.status == 200
    assert answer.values("content-security-policy") == [PAGE_POLICY]
    assert answer.values("cache-control") == ["no-store"]
    assert answer.values("cross-origin-opener-policy") == ["same-origin"]
    assert "http://gateway.example.com:8000/v1" in answer.body.decode()


async def test_the_page_names_the_public_url_whatever_host_was_asked() -> None:
    answer = await get_page("/", public_url="https://ai.example.com", host="evil.example")
    assert b"https://ai.example.com/v1" in answer.body
    assert b"evil" not in answer.body


async def test_a_host_is_no_html() -> None:
    answer = await get_page("/", host='x"><script>alert(1)</script>')
    assert b"<script>" not in answer.body


@pytest.mark.parametrize("name", PAGES)
def test_no_page_has_script_style_or_a_handler_in_it(name: str) -> None:
    text = (files("tidegate.dashboard") / "pages" / name).read_text("utf-8")
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle\s*=|\son[a-z]+\s*=|javascript:", text, re.IGNORECASE)
    for loaded in re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', text):
        assert loaded.startswith("/")
        if loaded.startswith("/assets/"):
            assert asset(loaded.removeprefix("/assets/")) is not None, loaded


@pytest.mark.parametrize("name", ASSETS)
async def test_an_asset_is_kept_and_asked_for_again(name: str) -> None:
    first = await get_page(f"/assets/{name}")
    tag = first.header("etag") or ""
    assert (first.status, first.header("cache-control")) == (200, "no-cache")
    assert first.body == (files("tidegate.dashboard") / "assets" / name).read_bytes()
    assert first.values("x-content-type-options") == ["nosniff"]
    for known in (tag, f'"other", W/{tag}'):
        again = await get_page(f"/assets/{name}", if_none_match=known)
        assert (again.status, again.body, again.header("etag")) == (304, b"", tag)
    assert (await get_page(f"/assets/{name}", if_none_match='"other"')).status == 200
    assert (await get_page(f"/assets/{name}", method="HEAD")).status == 200


@pytest.mark.parametrize(
    "name", ["nothing.css", "..%2f__init__.py", "../files.py", "%2e%2e/pages/front.html", "x" * 65, ""]
)
async def test_nothing_but_assets_is_served(name: str) -> None:
    assert (await get_page(f"/assets/{name}")).status in (404, 422)


def test_what_a_page_is_told_is_escaped() -> None:
    made = page("front.html", state="<b>", url="x&y", docs=Html("<dt>"))
    assert b"&lt;b&gt;" in made.body
    assert b"x&amp;y/v1" in made.body
    assert b"  <dt>\n" in bytes(made.body)


def test_pages_and_assets_are_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"tidegate/dashboard/assets/{name}" for name in ASSETS} <= packed
    assert {f"tidegate/dashboard/pages/{name}" for name in PAGES} <= packed
