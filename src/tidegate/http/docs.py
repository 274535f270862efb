"""The API's reference for a browser, at /docs and /redoc: FastAPI's pages, with a policy of their own.

Both load their program from a CDN, and both write styles into the page as they run, which the policy of every other
answer forbids. What is granted is read from the page itself: the origins that it names, and its one script of its own
by hash. So it is for development alone; production has neither page.
"""

import base64
import hashlib
import re
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_SCHEMA_URL: Final = "/openapi.json"
_NO_ICON: Final = "data:,"
_LOADED: Final = re.compile(r'<(?:script|link)\b[^>]*\b(?:src|href)="(https://[^"]+)"')
_INLINE: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@router.get("/docs")
async def swagger(request: Request) -> HTMLResponse:
    """Swagger UI."""
    title = f"{request.app.title}: the API"
    return _with_policy(get_swagger_ui_html(openapi_url=_SCHEMA_URL, title=title, swagger_favicon_url=_NO_ICON))


@router.get("/redoc")
async def redoc(request: Request) -> HTMLResponse:
    """ReDoc."""
    title = f"{request.app.title}: the API"
    page = get_redoc_html(openapi_url=_SCHEMA_URL, title=title, redoc_favicon_url=_NO_ICON, with_google_fonts=False)
    return _with_policy(page)


def _with_policy(page: HTMLResponse) -> HTMLResponse:
    page.headers["Content-Security-Policy"] = policy_for(bytes(page.body).decode())
    return page


def policy_for(page: str) -> str:
    """What this page needs, and nothing else: the hosts that it loads from, and its inline scripts as they are."""
    hosts = sorted({f"https://{urlsplit(url).netloc}" for url in _LOADED.findall(page)})
    digests = [hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(page)]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join([*hosts, *hashes])}",
            f"style-src 'unsafe-inline' {' '.join(hosts)}",
            f"img-src 'self' data: {' '.join(hosts)}",
            f"font-src data: {' '.join(hosts)}",
            "worker-src blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
