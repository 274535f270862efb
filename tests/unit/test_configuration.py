"""Every fault of the catalogue's file is told at once, with its line and the nearest name, and never with a secret."""

import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import CatalogueError, load_catalogue
from tidegate.settings import Settings

TEXT = """\
default_model = "m"

[upstreams.a]
provider = "openai"
base_url = "http://127.0.0.1:1/v1"
{a}
[upstreams.b]
provider = "echo"
{b}
[[models]]
name = "m"
attempts = ["a/m"]
{m}
[[models]]
name = "n"
attempts = ["b/n", "a/x"]
{n}
[[models]]
name = "o"
attempts = ["b/n"]
{o}
"""
SECRET = "sk-secret-0123456789"


def settings_of(text: str, environment: str = "test") -> Settings:
    return Settings.model_validate({"environment": environment, "data_dir": "unused", "config_toml": text})


def load(environment: str = "test", **lines: str) -> Catalogue:
    return load_catalogue(
        settings_of(TEXT.format(**{"a": "", "b": "", "m": "", "n": "", "o": "", **lines}), environment)
    )


def faults_of(text: str, environment: str = "test") -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(settings_of(text, environment))
    assert str(caught.value) == "\n".join(caught.value.faults)
    return [fault.removeprefix("TIDEGATE_CONFIG_TOML:") for fault in caught.value.faults]


def faults(**lines: str) -> list[str]:
    return faults_of(TEXT.format(**{"a": "", "b": "", "m": "", "n": "", "o": "", **lines}))


def test_the_plain_text_is_a_catalogue() -> None:
    assert [model.name for model in load().models] == ["m", "n", "o"]


@pytest.mark.parametrize(
    ("table", "line", "fault"),
    [
        (
            "a",
            "max_concurency = 3",
            "6: upstreams.a.max_concurency: there is no such name; did you mean max_concurrency?",
        ),
        ("b", "xyz = 3", "9: upstreams.b.xyz: there is no such name; there are: provider, base_url, api_key, "),
        ("a", "timeouts = { idle = 3 }", "6: upstreams.a.timeouts.idle: there is no such name; did you mean idle_s?"),
        (
            "a",
            "[upstreams.a.timeouts]\nidel_s = 3",
            "7: upstreams.a.timeouts.idel_s: there is no such name; did you mean idle_s?",
        ),
        ("b", "queue = { lenght = 3 }", "9: upstreams.b.queue.lenght: there is no such name; did you mean length?"),
        (
            "a",
            "breaker = { failurs = 3 }",
            "6: upstreams.a.breaker.failurs: there is no such name; did you mean failures?",
        ),
        ("n", "contxt_tokens = 3", "17: models.1.contxt_tokens: there is no such name; did you mean context_tokens?"),
        (
            "o",
            'price = { input = "1", output = "1", cache_input = "1" }',
            "21: models.2.price.cache_input: there is no such name; did you mean cached_input?",
        ),
        ("o", "[upstream.c]", "21: upstream: there is no such name; did you mean upstreams?"),
    ],
)
def test_an_unknown_name_is_told_with_its_line_and_the_nearest(table: str, line: str, fault: str) -> None:
    [told] = faults(**{table: line})
    assert told.startswith(fault)


@pytest.mark.parametrize(
    ("table", "line", "fault"),
    [
        ("a", 'max_concurrency = "3"', "6: upstreams.a.max_concurrency: Input should be a valid integer"),
        ("a", "max_concurrency = true", "6: upstreams.a.max_concurrency: Input should be a valid integer"),
        ("a", "max_concurrency = 0", "6: upstreams.a.max_concurrency: Input should be greater than 0"),
        ("b", "queue = { length = -1 }", "9: upstreams.b.queue.length: Input should be greater than or equal to 0"),
        ("b", "queue = 5", "9: upstreams.b.queue: must be a table"),
        ("a", "timeouts = { total_s = inf }", "6: upstreams.a.timeouts.total_s: Input should be a finite number"),
        ("a", "timeouts = { total_s = nan }", "6: upstreams.a.timeouts.total_s: Input should be a finite number"),
        ("a", "timeouts = { total_s = true }", "6: upstreams.a.timeouts.total_s: Input should be a valid number"),
        ("a", 'breaker = "of"', "6: upstreams.a.breaker: Input should be 'off'"),
        ("a", "breaker = false", "6: upstreams.a.breaker: must be a table"),
        ("a", "breaker = { failures = 0 }", "6: upstreams.a.breaker.failures: Input should be greater than 0"),
        ("a", 'usage_request = "allways"', "6: upstreams.a.usage_request: Input should be 'auto', 'always' or 'never'"),
        ("n", 'price = "catalog"', "17: models.1.price: Input should be 'catalogue'"),
        ("n", 'price = { input = "1" }', "17: models.1.price.output: is missing"),
        ("n", 'price = { input = "-1", output = "1" }', "17: models.1.price.input: Input should be greater"),
        ("n", 'groups = [""]', "17: models.1.groups.0: String should have at least 1 character"),
        ("a", 'forward_headers = ["Transfer-Encoding"]', "6: upstreams.a.forward_headers: Transfer-Encoding is never"),
        ("a", 'forward_headers = ["a b"]', "6: upstreams.a.forward_headers.0: String should match pattern"),
        ("a", 'forward_headers = ["Cookie"]', "6: upstreams.a.forward_headers: Cookie is never sent on to an upstream"),
        ("b", 'base_url = "http://x"', '7: upstreams.b: base_url and api_key have no use with provider "echo"'),
        ("o", '[upstreams.c]\nprovider = "opnai"', "22: upstreams.c.provider: Input should be 'openai', 'local' or "),
        ("o", '[upstreams.c]\nprovider = "openai"', '21: upstreams.c: an upstream of provider "openai" needs base_url'),
        ("o", '[upstreams."c d"]\nprovider = "echo"', "21: upstreams.c d: the name of an upstream has 1 to 64 of "),
        ("o", "[[models]]\nname = 'p'", "21: models.3.attempts: is missing"),
        ("o", "[[models]]\nname = 'p'\nattempts = []", "23: models.3.attempts: Tuple should have at least 1 item"),
        ("o", "[[models]]\nname = 'p'\nattempts = 'a/p'", "23: models.3.attempts: must be an array"),
        (
            "o",
            "[[models]]\nname = 'p'\nattempts = ['a/p', 'a']",
            "23: models.3.attempts.1: String should match pattern",
        ),
        (
            "o",
            "[[models]]\nname = ''\nattempts = ['a/p']",
            "22: models.3.name: String should have at least 1 character",
        ),
        ("o", "[[models]]\nname = 'm'\nattempts = ['a/m']", "22: models.3.name: the name 'm' stands twice"),
        (
            "o",
            "[[models]]\nname = 'p'\nattempts = ['a/p', 'openia/p']\n[upstreams.openai]\nprovider = 'echo'",
            "23: models.3.attempts: 'openia/p': there is no upstream 'openia'; did you mean openai?",
        ),
        (
            "o",
            "[[models]]\nname = 'p'\nattempts = ['c/*']\n",
            "23: models.3.attempts: 'c/*': there is no upstream 'c'; there are: a, b",
        ),
        (
            "o",
            "[[models]]\nname = 'p'\nattempts = ['a/*']",
            "23: models.3.attempts: 'a/*': only a model whose name ends in *",
        ),
        (
            "o",
            '[upstreams.c]\nprovider = "local"\n[upstreams.d]\nprovider = "local"',
            '23: upstreams.d: only one may have provider "local"',
        ),
        ("a", "x = ", "6: this is not TOML: Invalid value (at line 6, column 5)"),
        ("a", "[upstreams.a]", "6: this is not TOML: Cannot declare ('upstreams', 'a') twice (at line 6"),
    ],
)
def test_a_fault_is_told_with_its_line(table: str, line: str, fault: str) -> None:
    told = faults(**{table: line})
    assert any(found.startswith(fault) for found in told), told
    assert len(told) == 1 or "c/*" in line


@pytest.mark.parametrize("name", ["gpt-4.1", '"gpt-4.1"', "m"])
def test_a_table_for_a_model_is_refused_with_the_form(name: str) -> None:
    [fault] = faults_of(f'[upstreams.a]\nprovider = "echo"\n[models.{name}]\nattempts = ["a/m"]')
    assert fault == '3: models are an array: write [[models]] with name = "…", not [models.name]'


def test_all_faults_are_told_at_once_each_at_its_line() -> None:
    told = faults(a="max_concurency = 3", m='keepalive = "of"', n="keepalive_after_s = 0", o="groups = 5")
    assert [fault.partition(": ")[0] for fault in told] == ["6", "13", "17", "21"]
    told = faults(m='[[models]]\nname = "m"\nattempts = ["c/m"]', o='[[models]]\nname = "o"\nattempts = ["a/*"]')
    assert [fault.partition(": ")[0] for fault in told] == ["14", "15", "24", "25"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1: upstreams: is missing", "1: models: is missing"]),
        ("upstreams = 5\nmodels = 3", ["1: upstreams: must be a table", "2: models: must be an array"]),
        (
            TEXT.replace('default_model = "m"', 'default_model = "mm"'),
            ["1: default_model: there is no model 'mm'; did you mean m?"],
        ),
        (
            TEXT.replace("default_model", "defualt_model"),
            ["1: defualt_model: there is no such name; did you mean default_model?"],
        ),
        ('x = "', ["1: this is not TOML: "]),
    ],
)
def test_faults_at_the_top_of_the_file(text: str, expected: list[str]) -> None:
    told = faults_of(text.format(a="", b="", m="", n="", o=""))
    assert len(told) == len(expected)
    assert all(found.startswith(fault) for found, fault in zip(told, expected, strict=True)), told


def test_what_is_missing_is_told_at_its_own_table_and_not_at_the_next_that_has_it() -> None:
    text = TEXT.replace('attempts = ["a/m"]\n', "").replace('provider = "openai"\n', "")
    told = faults_of(text.format(a="", b="", m="", n="", o=""))
    assert told == ["3: upstreams.a.provider: is missing", "9: models.0.attempts: is missing"]
    told = faults(m='[models.price]\ninput = "1"', n='[models.price]\noutput = "1"')
    assert told == ["13: models.0.price.output: is missing", "18: models.1.price.input: is missing"]


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text("upstreams = 5\n[[models]]\nname = 'm'\nattempts = ['a/m']")
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(Settings(environment="test", data_dir=tmp_path, config=path))
    assert caught.value.faults == [f"{path}:1: upstreams: must be a table"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for path, reason in [
        (tmp_path / "none.toml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (binary, "it is not UTF-8"),
    ]:
        with pytest.raises(CatalogueError) as caught:
            load_catalogue(Settings(environment="test", data_dir=tmp_path, config=path))
        assert caught.value.faults == [f"TIDEGATE_CONFIG: {path} cannot be read: {reason}"]


def test_references_are_resolved_and_what_is_not_there_is_told(tmp_path: Path) -> None:
    there, empty, binary, lines = (tmp_path / name for name in ("there", "empty", "binary", "lines"))
    there.write_text(f"  {SECRET}\n")
    lines.write_text(f"{SECRET}\n{SECRET}\n")
    empty.write_text("\n")
    binary.write_bytes(b"\xff")
    present = [
        (f"file:{there}", SECRET),
        ("env:PYTEST_VERSION", os.environ["PYTEST_VERSION"]),
        (SECRET, SECRET),
        (f"{SECRET}\\n", SECRET),
    ]
    for reference, value in present:
        api_key = load(a=f'api_key = "{reference}"').upstreams["a"].api_key
        assert api_key is not None
        assert api_key.get_secret_value() == value
    for reference, reason in [
        ("env:TIDEGATE_TEST_NO_SUCH_NAME", "there is nothing at env:TIDEGATE_TEST_NO_SUCH_NAME"),
        (f"file:{tmp_path / 'none'}", f"there is nothing at file:{tmp_path / 'none'}"),
        (f"file:{empty}", f"there is nothing at file:{empty}"),
        (f"file:{binary}", f"file:{binary} cannot be read: it is not UTF-8"),
        (f"file:{lines}", "the key holds a blank, a line end or another character that no header can carry"),
        (f"{SECRET}\\u00e9", "the key holds a blank, a line end or another character that no header can carry"),
    ]:
        assert faults(a=f'api_key = "{reference}"') == [f"6: upstreams.a.api_key: {reason}"]


def test_a_literal_key_is_refused_in_production_alone() -> None:
    line = f'api_key = "{SECRET}"'
    text = TEXT.format(a=line, b="", m="", n="", o="")
    assert faults_of(text, "production") == [
        "6: upstreams.a.api_key: a literal key is refused in production; write env:NAME or file:/path"
    ]
    for environment in ("development", "test"):
        assert load(environment, a=line).upstreams["a"].api_key is not None


def test_a_secret_is_in_no_repr_and_in_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET)
    for reference in (SECRET, f"file:{path}"):
        catalogue = load(a=f'api_key = "{reference}"')
        for shown in (catalogue, catalogue.upstreams["a"], catalogue.models[0], catalogue.models[0].attempts):
            assert SECRET not in repr(shown) + str(shown)
    line = f'api_key = "{SECRET}"'
    for more in ("max_concurency = 3", "breaker = 5", "x = ", 'timeouts = { idle_s = "x" }', "api_keys = 'x'"):
        assert SECRET not in "".join(faults(a=f"{line}\n{more}"))
    wrong = faults(b=f'api_key = {{ value = "{SECRET}" }}') + faults(b=line)
    assert SECRET not in "".join(wrong)
    for url in (f"https://user:{SECRET}@host/v1", f"https://{SECRET}@host", f"https://host/v1?key={SECRET}"):
        [fault] = faults_of(TEXT.replace("http://127.0.0.1:1/v1", url).format(a="", b="", m="", n="", o=""))
        assert fault.startswith("5: upstreams.a.base_url: ")
        assert SECRET not in fault


def test_without_a_file_there_is_the_small_model_of_this_machine(tmp_path: Path) -> None:
    assert not Path("tidegate.toml").exists()
    catalogue = load_catalogue(Settings(environment="test", data_dir=tmp_path))
    assert {name: upstream.provider for name, upstream in catalogue.upstreams.items()} == {"local": "local"}
    [model] = catalogue.models
    assert model.attempts[0].price is not None
    assert catalogue.upstreams["local"].max_concurrency == 4


def test_two_catalogues_have_one_version_where_they_say_the_same() -> None:
    assert load().version == load(a="# a comment", b="queue = { length = 1000 }").version
    assert load().version != load(b="queue = { length = 999 }").version
    assert re.fullmatch(r"[0-9a-f]{12}", load().version)


@settings(deadline=None, max_examples=60)
@given(st.text(CHARACTERS, max_size=60) | st.lists(st.sampled_from(TEXT.split("\n")), max_size=20).map("\n".join))
def test_no_text_whatever_ends_in_anything_but_a_catalogue_or_faults_with_a_line(text: str) -> None:
    told: list[str] | None = None
    try:
        load_catalogue(settings_of(text))
    except CatalogueError as error:
        told = error.faults
    if told is None:
        tomllib.loads(text)
        return
    for fault in told:
        found = re.match(r"TIDEGATE_CONFIG_TOML:(\d+): ", fault)
        assert found, fault
        assert 1 <= int(found[1]) <= len(text.split("\n"))
    assert told
