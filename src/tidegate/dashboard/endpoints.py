"""The page at `/`: what runs here and how to call it; and what pages load. Public: it names no model, key or user."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import HTMLResponse
from starlette.requests import Request

from tidegate.dashboard.files import Html, asset, page
from tidegate.errors import NotFound
from tidegate.settings import Settings
from tidegate.telemetry.dependencies import HealthBoardDep

router = APIRouter(tags=["dashboard"])

_DOCS = Html('<dt>Reference</dt><dd><a href="/docs">/docs</a></dd>')


@router.get("/", response_class=HTMLResponse)
async def front_page(request: Request, board: HealthBoardDep) -> HTMLResponse:
    """What runs here, for a person with a browser."""
    settings: Settings = request.state.settings
    return page(
        "front.html",
        state=board.state if board.is_ready or board.state != "ready" else "starting",
        url=settings.http.public_url or str(request.base_url).rstrip("/"),
        docs=Html() if settings.in_production else _DOCS,
    )


@router.get("/assets/{name}", include_in_schema=False)
@router.head("/assets/{name}", include_in_schema=False)
async def page_asset(
    name: Annotated[str, Path(max_length=64)],
    known_etag: Annotated[str | None, Header(alias="If-None-Match", max_length=256)] = None,
) -> Response:
    """A style, script or image of the pages. Browsers keep it, and ask each time whether it is still the same."""
    found = asset(name)
    if found is None:
        raise NotFound("There is no such file.")
    headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
    if known_etag is not None and found.etag in (tag.strip().removeprefix("W/") for tag in known_etag.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)
