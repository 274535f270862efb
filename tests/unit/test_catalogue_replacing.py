"""What tells two catalogues apart, and which of them cannot take the place of the other in a server that runs."""

from pathlib import Path

import pytest

from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import CatalogueSource, faults_of_replacing, parse_catalogue
from tidegate.settings import Settings

TEXT = """
default_model = "m"
[upstreams.one]
provider = "openai"
base_url = "http://127.0.0.1:1/v1"
api_key = "file:{key}"
max_concurrency = 64
[upstreams.two]
provider = "echo"
[[models]]
name = "m"
groups = ["standard"]
attempts = ["one/m", "two/m"]
context_tokens = 1000
price = {{ input = "1", output = "2" }}
[[models]]
name = "n"
attempts = ["two/n"]
"""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("secret")
    return tmp_path / "key"


def parsed(text: str) -> Catalogue:
    return parse_catalogue(Settings(environment="test"), CatalogueSource("t.toml", text))


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("max_concurrency = 64", "max_concurrency = 63"),
        ('output = "2"', 'output = "2.5"'),
        ("/v1", "/v2"),
        ('groups = ["standard"]', "groups = []"),
        ('["one/m", "two/m"]', '["two/m", "one/m"]'),
        ("context_tokens = 1000", "context_tokens = 1001"),
        ('default_model = "m"', 'default_model = "n"'),
        ('provider = "echo"', 'provider = "echo"\nbreaker = "off"'),
        ('provider = "echo"', 'provider = "echo"\nqueue = { length = 1000, deadline_s = 9 }'),
        ('name = "n"', 'name = "o"'),
        ('attempts = ["two/n"]', 'attempts = ["two/n"]\ncache = { ttl_s = 60 }'),
        ("/key", "/other"),
    ],
)
def test_a_version_is_of_everything_that_is_written(written: str, instead: str, key: Path) -> None:
    (key.parent / "other").write_text("secret")
    text = TEXT.format(key=key)
    assert written in text
    changed = text.replace(written, instead).replace('default_model = "m"', "", instead == 'name = "o"')
    assert parsed(changed).version != parsed(text).version


def test_a_version_is_of_nothing_else(key: Path) -> None:
    text = TEXT.format(key=key)
    version = parsed(text).version
    key.write_text("rotated")
    spelled = "# a comment\n" + text.replace("max_concurrency", 'usage_request = "auto"\nmax_concurrency')
    assert parsed(spelled).version == version
    literal = text.replace(f"file:{key}", "a-literal-key")
    assert parsed(literal).version == parsed(literal.replace("a-literal-key", "another")).version


LOCAL = '[upstreams.small]\nprovider = "local"\n[[models]]\nname = "s"\nattempts = ["small/s"]\n'
ECHO = LOCAL.replace("local", "echo")
NAMED = LOCAL.replace("small", "tiny")
FEWER = LOCAL.replace('"local"', '"local"\nmax_concurrency = 2')


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        (ECHO, LOCAL, "t.toml:2: upstreams.small.provider: a reload cannot start the local model: restart the server"),
        (
            LOCAL,
            ECHO,
            "t.toml:1: upstreams: the upstream 'small' of provider \"local\" is gone, and a reload cannot stop ",
        ),
        (
            LOCAL,
            FEWER,
            "t.toml:3: upstreams.small.max_concurrency: a reload cannot change the 4 slots of the local model",
        ),
        (LOCAL, NAMED, None),
        (LOCAL, LOCAL.replace('"local"', '"local"\nmax_concurrency = 4'), None),
        (ECHO, ECHO.replace("small", "tiny"), None),
    ],
)
def test_the_local_model_is_as_the_server_was_started(before: str, after: str, fault: str | None) -> None:
    faults = faults_of_replacing(parsed(before), parsed(after), CatalogueSource("t.toml", after))
    assert len(faults) == (fault is not None)
    assert all(one.startswith(fault or "") for one in faults)


def test_embedded_mode_s_own_goes_for_itself() -> None:
    embedded = CatalogueSource("embedded", None)
    own = parse_catalogue(Settings(environment="test"), embedded)
    assert faults_of_replacing(own, own, embedded) == []
    assert faults_of_replacing(own, parsed(LOCAL), CatalogueSource("t.toml", LOCAL)) == []
    [fault] = faults_of_replacing(parsed(ECHO), own, embedded)
    assert fault.startswith("embedded:1: upstreams.local.provider: a reload cannot start")
