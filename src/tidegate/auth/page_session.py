"""The page's session: the same tokens, in cookies that no script reads, and what keeps other sites from using them.

A browser sends cookies with requests that other sites make. So whatever a cookie alone stands for is changed only by a
request that the page itself makes: it has the header `X-Tidegate-CSRF: 1`, which no form and no plain cross-origin
request can carry, and what the browser says of its origin (`Sec-Fetch-Site`, `Origin`) is this gateway.

Under https, and always in production, cookies are Secure and their names begin with `__Host-`: no other host of the
domain and nobody on an unencrypted connection can set one (RFC 6265bis, 4.1.3), so nobody can sign a browser in as
themselves. A name without the prefix is then not read. The prefix asks for the path `/`, so the refresh token comes
with every request of the browser; only the routes of `REFRESH_PATH` look at it. A third cookie comes and goes with
them, holds no secret and is believed by nobody: by it the page's scripts know that there is a session to refresh. A
fourth outlives them: it says that somebody logged in here before (`accounts.known_browsers`), and lets nobody in.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from tidegate.auth.credentials import is_api_key
from tidegate.errors import InvalidToken, PermissionDenied
from tidegate.settings import Settings

CSRF_HEADER: Final = "X-Tidegate-CSRF"
REFRESH_PATH: Final = "/auth/page"
_ACCESS: Final = "tidegate_access"
_REFRESH: Final = "tidegate_refresh"
_MARK: Final = "tidegate_signed_in"
_KNOWN_BROWSER: Final = "tidegate_known_browser"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CREDENTIAL_HEADERS: Final = frozenset({b"authorization", b"x-api-key"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class PageCookies:
    """The cookies of one request's page: their names, and whether they are Secure."""

    is_secure: bool

    @classmethod
    def of(cls, request: Request) -> "PageCookies":
        settings: Settings = request.state.settings
        return cls(settings.in_production or request.url.scheme == "https")

    @property
    def access_name(self) -> str:
        return self._named(_ACCESS)

    @property
    def refresh_name(self) -> str:
        return self._named(_REFRESH)

    @property
    def mark_name(self) -> str:
        return self._named(_MARK)

    def give(self, response: Response, *, access: tuple[str, int], refresh: tuple[str, int]) -> None:
        """Sets them all: `access` and `refresh` are a token and the seconds that it lives."""
        self._set(response, self.access_name, access)
        self._set(response, self.refresh_name, refresh)
        self._set(response, self.mark_name, ("1", refresh[1]), is_for_scripts=True)

    def take_back(self, response: Response) -> None:
        """Has the browser forget them all."""
        self._set(response, self.access_name, ("", 0))
        self._set(response, self.refresh_name, ("", 0))
        self._set(response, self.mark_name, ("", 0), is_for_scripts=True)

    def known_browser(self, request: Request) -> str | None:
        """What `remember` set in this browser."""
        return request.cookies.get(self._named(_KNOWN_BROWSER)) or None

    def remember(self, response: Response, value: str, lifetime_s: int) -> None:
        """Has the browser keep what it is known by. It stays when the session ends."""
        self._set(response, self._named(_KNOWN_BROWSER), (value, lifetime_s))

    def _named(self, name: str) -> str:
        return f"__Host-{name}" if self.is_secure else name

    def _set(self, response: Response, name: str, value: tuple[str, int], *, is_for_scripts: bool = False) -> None:
        written, max_age = value
        response.set_cookie(
            name,
            written,
            max_age=max_age,
            path="/",
            secure=self.is_secure,
            httponly=not is_for_scripts,
            samesite="strict",
        )


def access_cookie(request: Request) -> bytes | None:
    """The access token of the page that made this request; None where it has another credential, or none.

    Raises `PermissionDenied` where it would change something and is not the page's own, `InvalidToken` where the
    cookie holds an API key.
    """
    if not request.cookies or any(name in _CREDENTIAL_HEADERS for name, _ in request.scope["headers"]):
        return None
    token = request.cookies.get(PageCookies.of(request).access_name)
    if not token:
        return None
    if request.method not in _SAFE_METHODS:
        require_own_page(request)
    credential = token.encode("utf-8", "surrogateescape")
    if is_api_key(credential):
        raise InvalidToken("A cookie holds no API key: send it as 'Authorization: Bearer <API key>'.")
    return credential


def refresh_cookie(request: Request) -> str | None:
    """The page's refresh token, None where this browser has no session."""
    return request.cookies.get(PageCookies.of(request).refresh_name) or None


def require_own_page(request: Request) -> None:
    """Lets through what this gateway's own page asks for. Raises `PermissionDenied`, which says what is not so."""
    if request.headers.getlist(CSRF_HEADER) != ["1"]:
        raise PermissionDenied(f"With a cookie, or for one, a request needs the header {CSRF_HEADER}: 1.")
    if is_of_another_origin(request):
        raise PermissionDenied("A page of another origin made this request (Sec-Fetch-Site): cookies are for ours.")
    own = _own_origins(request)
    if any(_normal(origin) not in own for origin in request.headers.getlist("origin")):
        raise PermissionDenied(
            "The Origin of this request is not this gateway's: behind a proxy set TIDEGATE_HTTP__PUBLIC_URL to the "
            "address that browsers use."
        )


def is_of_another_origin(request: Request) -> bool:
    """Whether the browser says that a page of another origin made or led to this request (W3C Fetch Metadata). Old
    browsers, programs, and all browsers over plain HTTP to other machines say nothing.
    """
    return any(site not in ("same-origin", "none") for site in request.headers.getlist("sec-fetch-site"))


def _own_origins(request: Request) -> set[str | None]:
    settings: Settings = request.state.settings
    own = [f"{request.url.scheme}://{request.url.netloc}"]
    if settings.http.public_url is not None:
        own.append(settings.http.public_url)
    return {_normal(origin) for origin in own} - {None}


def _normal(origin: str) -> str | None:
    """An origin with its port (RFC 6454, 4); None for what is none, such as `null`."""
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if parts.hostname is None or port is None or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return f"{parts.scheme}://{parts.hostname}:{port}"
