"""The pages of accounts: for everybody, the same for everybody, and safe where their scripts do not run."""

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from tests.support.pages import get_page
from tidegate.auth.passwords import MAXIMUM_CHARACTERS, MINIMUM_CHARACTERS
from tidegate.dashboard.files import PAGE_POLICY
from tidegate.mail.links import Page

FOLDER = files("tidegate.dashboard")
SCRIPTS = {file.name: file.read_text("utf-8") for file in (FOLDER / "assets").iterdir() if file.name.endswith(".js")}
MAILED = [f"/{page}" for page in get_args(Page)]
PATHS = ["/sign-in", "/forgot-password", *MAILED]
NODE = shutil.which("node")


@dataclass
class Elements(HTMLParser):
    """Every element of a page: its tag and attributes."""

    found: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, body: bytes) -> "Elements":
        elements = cls()
        elements.feed(body.decode())
        return elements

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_of_accounts_is_on_the_public_port_under_the_strict_policy(path: str) -> None:
    for port in (8000, 9000):
        answer = await get_page(path, management_port=9000, port=port)
        assert answer.status == 200
        assert answer.values("content-type") == ["text/html; charset=utf-8"]
        assert answer.values("content-security-policy") == [PAGE_POLICY]
        assert answer.values("referrer-policy") == ["no-referrer"]
        assert answer.values("x-content-type-options") == ["nosniff"]
        assert answer.values("cross-origin-opener-policy") == ["same-origin"]
    assert "frame-ancestors 'none'" in PAGE_POLICY
    assert (await get_page("/", management_port=9000, port=8000)).status == 404


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_that_a_browser_has_is_not_sent_again_and_keeps_its_policy(path: str) -> None:
    first = await get_page(path)
    tag = first.header("etag") or ""
    assert first.values("cache-control") == ["no-cache"]
    again = await get_page(path, if_none_match=tag)
    assert (again.status, again.body, again.header("etag")) == (304, b"", tag)
    assert again.values("content-security-policy") == [PAGE_POLICY]
    assert again.values("cache-control") == ["no-cache"]
    assert (await get_page(path, if_none_match='"other"')).body == first.body
    head = await get_page(path, method="HEAD")
    assert (head.status, head.header("etag")) == (200, tag)


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_is_the_same_whoever_asks_and_however(path: str) -> None:
    plain = await get_page(path)
    asked = await get_page(
        path,
        query="next=//evil.example&token=tgm_secret",
        host="evil.example",
        cookie="tidegate_access=secret",
        authorization="Bearer secret",
        public_url="https://ai.example.com",
    )
    assert asked.body == plain.body
    assert asked.header("etag") == plain.header("etag")
    assert asked.values("set-cookie") == []


async def test_signing_in_leads_to_the_front_page_where_there_is_one() -> None:
    for management_port, port, home in ((None, 8000, "/"), (9000, 9000, "/"), (9000, 8000, "/sign-in")):
        answer = await get_page("/sign-in", management_port=management_port, port=port)
        (body,) = Elements.of(answer.body).all("body")
        assert body["data-home"] == home
        assert (await get_page(home, management_port=management_port, port=port)).status == 200


@pytest.mark.parametrize("path", PATHS)
async def test_without_its_script_a_page_says_so_and_sends_no_password_anywhere(path: str) -> None:
    answer = await get_page(path)
    elements = Elements.of(answer.body)
    assert b'<noscript><p role="alert">This page needs JavaScript' in answer.body
    # A form's own way is a GET with all that it holds in the address.
    (form,) = elements.all("form")
    assert form["method"] == "post"
    assert "action" not in form
    (submit,) = [button for button in elements.all("button") if button["type"] == "submit"]
    assert "disabled" in submit
    assert (await get_page(path, method="POST")).status == 405


@pytest.mark.parametrize("path", PATHS)
async def test_every_field_has_its_label_its_purpose_and_a_place_for_its_fault(path: str) -> None:
    elements = Elements.of((await get_page(path)).body)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {label["for"] for label in elements.all("label")}
    for field_ in elements.all("input"):
        assert field_["id"] in labelled
        assert field_["autocomplete"] in {"username", "current-password", "new-password", "one-time-code"}
        described = (field_["aria-describedby"] or "").split()
        assert f"{field_['id']}-fault" in described
        assert set(described) <= set(ids)
        # A password that is pasted is not cut.
        assert "maxlength" not in field_
    shown = [button["data-shows"] for button in elements.all("button") if "data-shows" in button]
    assert shown == [field_["id"] for field_ in elements.all("input") if field_["type"] == "password"]


async def test_the_rule_of_passwords_is_said_as_it_is() -> None:
    for path in ("/invitation", "/reset-password"):
        assert f"At least {MINIMUM_CHARACTERS} characters" in (await get_page(path)).body.decode()
    assert f"length < {MINIMUM_CHARACTERS}" in SCRIPTS["words.js"]
    assert f"length > {MAXIMUM_CHARACTERS}" in SCRIPTS["words.js"]


@pytest.mark.parametrize("path", ["/", *PATHS])
async def test_a_page_loads_all_that_its_script_imports_at_once(path: str) -> None:
    elements = Elements.of((await get_page(path)).body)
    (script,) = elements.all("script")
    assert script["type"] == "module"
    preloaded = {link["href"] for link in elements.all("link") if link["rel"] == "modulepreload"}
    needed: set[str] = set()
    names = [(script["src"] or "").removeprefix("/assets/")]
    while names:
        imported = set(re.findall(r'from "\./([\w-]+\.js)"', SCRIPTS[names.pop()])) - needed
        needed |= imported
        names += imported
    assert preloaded == {f"/assets/{name}" for name in needed}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_writes_html_runs_text_or_keeps_a_token(name: str) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|localStorage|sessionStorage"
        r"|document\.cookie|https?://"
    )
    # One read is let be: whether there is a session at all.
    text = SCRIPTS[name].replace("return MARK_OF_A_SESSION.test(document.cookie);", "")
    assert not re.search(forbidden, text)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_what_scripts_decide_is_right(tmp_path: Path) -> None:
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(Path(__file__).with_name("page_scripts.test.js"), tmp_path)
    command = [str(NODE), "--test", "page_scripts.test.js"]
    ran = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counted = re.search(r"^(?:#|ℹ) pass (\d+)$", ran.stdout, re.MULTILINE)
    assert counted, ran.stdout
    assert int(counted[1]) > 0
