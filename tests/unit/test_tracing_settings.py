"""Where traces go, as the settings say it: what is refused, and what is never shown."""

import pytest
from pydantic import ValidationError

from tests.unit.test_settings_rules import settings_with
from tidegate.settings.rules import faults_everywhere, production_advice, production_faults
from tidegate.settings.tracing import TracingSettings

_TOKEN = "Kq7Zr2Xw9Lm4Tn8Vb3Hc"


def tracing_with(**values: object) -> TracingSettings:
    return TracingSettings.model_validate(values)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (None, None),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("https://collector/v1/traces", "https://collector/v1/traces"),
        ("https://collector/otlp/own", "https://collector/otlp/own"),
    ],
)
def test_an_endpoint_without_a_path_has_that_of_otlp(endpoint: str | None, url: str | None) -> None:
    assert tracing_with(endpoint=endpoint).url == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4317",
        "grpc://collector",
        "http://",
        "http://u:word@c",
        "http://c/?key=1",
        "http://c:99999",
        "http://c/#a",
    ],
)
def test_what_is_no_collectors_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="must be a collector's URL"):
        tracing_with(endpoint=endpoint)


def test_headers_are_pairs_and_their_values_may_be_encoded() -> None:
    written = f"authorization=Basic%20{_TOKEN}==, x-team = a"
    pairs = tracing_with(headers=written).header_pairs
    assert pairs == [("authorization", f"Basic {_TOKEN}=="), ("x-team", "a")]


@pytest.mark.parametrize(
    "headers", ["no-pair", "=v", "a b=v", f"a={_TOKEN}\n", "a=", "a=b,", f"a=x%0d%0ab:{_TOKEN}", "a=ä", "host=evil"]
)
def test_headers_that_cannot_be_sent_are_refused_without_showing_them(headers: str) -> None:
    if headers.endswith("\n"):
        headers = headers.replace("\n", "\nb")
    with pytest.raises(ValidationError) as caught:
        tracing_with(headers=headers)
    assert _TOKEN not in str(caught.value)


def test_headers_are_never_shown() -> None:
    assert _TOKEN not in repr(tracing_with(endpoint="http://c", headers=f"x-key={_TOKEN}"))


@pytest.mark.parametrize("sample", [-0.1, 1.1, "much"])
def test_a_share_is_from_none_to_all(sample: object) -> None:
    with pytest.raises(ValidationError):
        tracing_with(sample=sample)


@pytest.mark.parametrize(
    ("endpoint", "headers", "is_refused"),
    [
        ("http://collector.example.com", f"x-key={_TOKEN}", True),
        ("http://203.0.113.7:4318", f"x-key={_TOKEN}", True),
        ("http://collector.example.com", None, False),
        ("https://collector.example.com", f"x-key={_TOKEN}", False),
        ("http://collector:4318", f"x-key={_TOKEN}", False),
        ("http://10.0.0.7:4318", f"x-key={_TOKEN}", False),
        ("http://127.0.0.1:4318", f"x-key={_TOKEN}", False),
    ],
)
def test_production_sends_no_secret_in_the_clear(endpoint: str, headers: str | None, is_refused: bool) -> None:
    settings = settings_with({"tracing": {"endpoint": endpoint, "headers": headers}})
    faults = production_faults(settings)
    assert [fault.partition(":")[0] for fault in faults] == (["TIDEGATE_TRACING__ENDPOINT"] if is_refused else [])
    assert _TOKEN not in "".join(faults)


def test_traces_in_the_clear_beyond_private_networks_are_warned_of() -> None:
    told = production_advice(settings_with({"tracing": {"endpoint": "http://collector.example.com"}}))
    assert [line.partition(":")[0] for line in told if "TRACING" in line] == ["TIDEGATE_TRACING__ENDPOINT"]
    told = production_advice(settings_with({"tracing": {"endpoint": "http://collector"}}))
    assert not [line for line in told if "TRACING" in line]


def test_the_packages_are_there_where_the_extra_is() -> None:
    assert faults_everywhere(settings_with({"tracing": {"endpoint": "http://collector"}})) == []
