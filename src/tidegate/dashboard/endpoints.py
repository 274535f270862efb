"""The page at `/`: what runs here and how to call it; the pages of accounts; and what pages load.

Whoever asks gets the same: no page names a model, key or user. What is somebody's own, their page asks of the API.
`router` is for who runs the gateway, `people` for everybody, since e-mails lead to its pages.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import HTMLResponse
from starlette.requests import Request

from tidegate.dashboard.files import PAGE_POLICY, Asset, Html, asset, page, same_page
from tidegate.errors import NotFound
from tidegate.http.management import is_open_to
from tidegate.settings import Settings
from tidegate.telemetry.dependencies import HealthBoardDep

router = APIRouter(tags=["dashboard"])
people = APIRouter(include_in_schema=False)

KnownETag = Annotated[str | None, Header(alias="If-None-Match", max_length=256)]

_DOCS = Html('<dt>Reference</dt><dd><a href="/docs">/docs</a></dd>')


@router.get("/", response_class=HTMLResponse)
async def front_page(request: Request, board: HealthBoardDep) -> HTMLResponse:
    """What runs here, for a person with a browser."""
    settings: Settings = request.state.settings
    return page(
        "front.html",
        state=board.readiness,
        url=settings.http.public_url or str(request.base_url).rstrip("/"),
        docs=Html() if settings.in_production else _DOCS,
    )


@people.get("/sign-in")
@people.head("/sign-in")
async def sign_in_page(request: Request, known_etag: KnownETag = None) -> Response:
    """Signs a browser in, and leads it to the page at `/` where there is one on this port."""
    settings: Settings = request.state.settings
    has_front_page = is_open_to(request.scope, settings.server.management_port)
    return _page(same_page("sign-in.html", home=Html("/" if has_front_page else "/sign-in")), known_etag)


@people.get("/forgot-password")
@people.head("/forgot-password")
async def forgot_password_page(known_etag: KnownETag = None) -> Response:
    """Has a link for a new password sent."""
    return _page(same_page("forgot-password.html"), known_etag)


@people.get("/invitation")
@people.head("/invitation")
async def invitation_page(known_etag: KnownETag = None) -> Response:
    """What an invitation's link leads to. Its token stands in the fragment, which is not sent here."""
    return _page(same_page("invitation.html"), known_etag)


@people.get("/reset-password")
@people.head("/reset-password")
async def reset_password_page(known_etag: KnownETag = None) -> Response:
    """What the link for a new password leads to."""
    return _page(same_page("reset-password.html"), known_etag)


@people.get("/confirm-email")
@people.head("/confirm-email")
async def confirm_email_page(known_etag: KnownETag = None) -> Response:
    """What the link for a new address leads to."""
    return _page(same_page("confirm-email.html"), known_etag)


@people.get("/assets/{name}")
@people.head("/assets/{name}")
async def page_asset(name: Annotated[str, Path(max_length=64)], known_etag: KnownETag = None) -> Response:
    """A style, script or image of the pages. Browsers keep it, and ask each time whether it is still the same."""
    found = asset(name)
    if found is None:
        raise NotFound("There is no such file.")
    return _answer(found, known_etag, {})


def _page(found: Asset, known_etag: str | None) -> Response:
    # With a 304 too: a browser takes its headers for those of what it kept (RFC 9111, 3.2).
    return _answer(found, known_etag, {"Content-Security-Policy": PAGE_POLICY})


def _answer(found: Asset, known_etag: str | None, headers: dict[str, str]) -> Response:
    headers |= {"ETag": found.etag, "Cache-Control": "no-cache"}
    if known_etag is not None and found.etag in (tag.strip().removeprefix("W/") for tag in known_etag.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)
