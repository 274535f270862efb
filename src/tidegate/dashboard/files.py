"""The pages and what they load, as files of this package: `pages/*.html`, and `assets/` for styles, scripts and images.

A page is a `string.Template`. Its policy lets it load from this gateway alone, and run and style nothing that stands in
the page itself: so there is no inline script, style or event handler in any of them, and a script that wants to write
HTML from text cannot (trusted types). What a page says of its own is escaped here.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from types import MappingProxyType
from typing import Final

from fastapi.responses import HTMLResponse

_PACKAGE: Final = "tidegate.dashboard"
_MEDIA_TYPES: Final = MappingProxyType(
    {
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that browsers may keep. `etag` is of its content."""

    body: bytes
    media_type: str
    etag: str


class Html(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def page(name: str, /, **values: str) -> HTMLResponse:
    """The page in `pages/`, with these values for its names; what is not `Html` is escaped.

    >>> page("front.html", state="ready", url="https://gateway.example.com", docs=Html("<dt>…</dt>"))
    """
    told = {key: value if isinstance(value, Html) else escape(value) for key, value in values.items()}
    return HTMLResponse(
        _template(name).substitute(told),
        headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-store"},
    )


@cache
def same_page(name: str, /, **values: Html) -> Asset:
    """The page in `pages/` with these values, for one that is the same for everybody."""
    return _asset(_template(name).substitute(values).encode(), "text/html; charset=utf-8")


def asset(name: str) -> Asset | None:
    """The file of this name in `assets/`, None where there is none."""
    return _assets().get(name)


@cache
def _template(name: str) -> Template:
    return Template((files(_PACKAGE) / "pages" / name).read_text("utf-8"))


@cache
def _assets() -> MappingProxyType[str, Asset]:
    found = {}
    for file in (files(_PACKAGE) / "assets").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            found[file.name] = _asset(file.read_bytes(), media_type)
    return MappingProxyType(found)


def _asset(body: bytes, media_type: str) -> Asset:
    return Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
