"""Which cookies a page has, and whose request may use one: what needs no server to be shown."""

from types import SimpleNamespace

import pytest
from starlette.requests import Request
from starlette.responses import Response

from tidegate.auth.page_session import PageCookies, access_cookie, refresh_cookie, require_own_page
from tidegate.errors import PermissionDenied
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings


def _request(
    headers: list[tuple[str, str]], *, scheme: str = "http", method: str = "GET", settings: Settings | None = None
) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    state = SimpleNamespace(settings=settings or Settings(environment="test"))
    request = Request(
        {
            "type": "http",
            "method": method,
            "scheme": scheme,
            "server": ("127.0.0.1", 8000),
            "path": "/auth/page/login",
            "query_string": b"",
            "headers": [(b"host", b"gateway"), *raw],
        }
    )
    request._state = state  # type: ignore[assignment]
    return request


PRODUCTION = Settings(environment="production")


@pytest.mark.parametrize(("scheme", "settings"), [("http", PRODUCTION), ("https", PRODUCTION), ("https", None)])
def test_cookies_are_secure_in_production_and_under_https(scheme: str, settings: Settings | None) -> None:
    cookies = PageCookies.of(_request([], scheme=scheme, settings=settings))
    assert (cookies.access_name, cookies.refresh_name) == ("__Host-tidegate_access", "__Host-tidegate_refresh")
    response = Response()
    cookies.give(response, access=("a", 1), refresh=("r", 2))
    cookies.take_back(response)
    lines = [value.decode() for name, value in response.raw_headers if name == b"set-cookie"]
    assert len(lines) == 6
    for line in lines:
        parts = {part.strip() for part in line.split(";")}
        assert {"Secure", "SameSite=strict"} <= parts
        assert ("HttpOnly" in parts) is not line.startswith("__Host-tidegate_signed_in=")
    # RFC 6265bis, 4.1.3.2: a name with __Host- needs Path=/ and no Domain, or the browser drops it.
    assert all("Path=/;" in line + ";" for line in lines if line.startswith("__Host-"))


def test_a_name_without_its_prefix_is_not_read_where_cookies_are_secure() -> None:
    cookie = [("Cookie", "tidegate_access=a; tidegate_refresh=r")]
    request = _request(cookie)
    assert (access_cookie(request), refresh_cookie(request)) == (b"a", "r")
    secure = _request(cookie, scheme="https")
    assert (access_cookie(secure), refresh_cookie(secure)) == (None, None)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY", "post"])
def test_whatever_may_change_something_needs_the_header(method: str) -> None:
    cookie = ("Cookie", "tidegate_access=a")
    with pytest.raises(PermissionDenied, match="X-Tidegate-CSRF"):
        access_cookie(_request([cookie], method=method))
    assert access_cookie(_request([cookie, ("X-Tidegate-CSRF", "1")], method=method)) == b"a"
    # Without the cookie nothing of the page's is asked.
    assert access_cookie(_request([], method=method)) is None


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "http://gateway"), ("Origin", "http://evil.example")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
        [("X-Tidegate-CSRF", "1")],
        [("Origin", "http://gateway/path")],
        [("Origin", "http://gateway:99999")],
        [("Origin", "http://[::1")],
        [("Origin", "gateway")],
        [("Origin", "file://")],
    ],
)
def test_headers_that_say_two_things_or_nothing_are_no_pages(headers: list[tuple[str, str]]) -> None:
    require_own_page(_request([("X-Tidegate-CSRF", "1"), ("Origin", "http://gateway")]))
    with pytest.raises(PermissionDenied):
        require_own_page(_request([("X-Tidegate-CSRF", "1"), *headers]))


def test_the_public_url_counts_beside_the_address_that_was_asked() -> None:
    settings = Settings(environment="test", http=HttpSettings(public_url="https://Gateway.example.com:443"))
    for origin in ("https://gateway.example.com", "http://gateway"):
        require_own_page(_request([("X-Tidegate-CSRF", "1"), ("Origin", origin)], settings=settings))
    with pytest.raises(PermissionDenied):
        require_own_page(_request([("X-Tidegate-CSRF", "1"), ("Origin", "https://gateway")], settings=settings))
