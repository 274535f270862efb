"""Which addresses are never called, in every form that an address can be written."""

import pytest

from tidegate.routing.configuration import CatalogueError, load_catalogue
from tidegate.settings import Settings
from tidegate.settings.groups import AlertsSettings
from tidegate.upstream.addresses import fault_of_url, refusal_of

NEVER = (
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "febf::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "255.255.255.255",
    "240.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:abcd:12:3456:a9fe:a9fe",
    "64:ff9b:1::100.100.100.200",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1:a9fe:a9:fe00:0:1",
    "64:ff9b:1:bba9:fe:a9fe::",
    "64:ff9b:1:bbbb:a9:fea9:fe00:0",
    "2002:a9fe:a9fe::1",
    "::ffff:0.0.0.0",
)
CALLED = (
    "127.0.0.1",
    "::1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fd00::1",
    "::ffff:127.0.0.1",
    "64:ff9b::808:808",
    "64:ff9b:1::808:808",
    "64:ff9b:1:fffe::808:808",
    "64:ff9b:1:808:8:800::",
    "64:ff9b:2::a9fe:a9fe",
    "8.8.8.8",
    "2001:4860:4860::8888",
    "169.253.255.255",
    "169.255.0.0",
    "localhost",
    "models.internal",
)


@pytest.mark.parametrize("address", NEVER)
def test_what_is_never_called(address: str) -> None:
    assert refusal_of(address) is not None
    host = f"[{address}]" if ":" in address else address
    assert "is not called" in (fault_of_url(f"https://{host.replace('%', '%25')}:8443/v1") or "")


@pytest.mark.parametrize("address", CALLED)
def test_what_may_be_called(address: str) -> None:
    assert refusal_of(address) is None
    assert fault_of_url(f"http://[{address}]/v1" if ":" in address else f"http://{address}:8000") is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "javascript:alert(1)",
        "//example.com",
        "example.com",
        "http://",
        "http:///x",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://example.com@169.254.169.254/",
        "http://[::1",
        "http://example.com:99999/",
        "http://example.com:x/",
    ],
)
def test_what_is_no_url_to_call(url: str) -> None:
    assert fault_of_url(url) is not None


def catalogue(base_url: str) -> Settings:
    text = f'[upstreams.u]\nprovider = "openai"\nbase_url = "{base_url}"\n[[models]]\nname = "m"\nattempts = ["u/m"]\n'
    return Settings(environment="test", config_toml=text)


def test_an_upstream_at_an_address_that_is_never_called_is_refused_with_its_place() -> None:
    with pytest.raises(CatalogueError) as refused:
        load_catalogue(catalogue("http://169.254.169.254/v1"))
    (fault,) = refused.value.faults
    assert ":3: upstreams.u.base_url: is not called: 169.254.169.254 is link-local" in fault


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:11434/v1", "http://vllm:8000/v1", "https://10.0.0.1/v1"])
def test_an_upstream_of_ones_own_network_is_taken(base_url: str) -> None:
    assert load_catalogue(catalogue(base_url)).upstreams["u"].base_url == base_url


@pytest.mark.parametrize("url", ["https://u:hunter2@hooks.example.com/", "https:///x", "ftp://hooks.example.com"])
def test_a_webhook_that_is_no_url_to_call_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="webhook_url") as refused:
        AlertsSettings.model_validate({"webhook_url": url, "webhook_secret": "0123456789abcdefghijklmnopqrstuvwxyz"})
    assert "hunter2" not in str(refused.value)
