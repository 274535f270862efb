"""Single sign-on over HTTP: whether there is any, the way to the provider, and the way back."""

from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Response, status
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.requests import Request

from tidegate.accounts.sign_ins.dependencies import never_stored
from tidegate.accounts.sign_ins.endpoints import give_session
from tidegate.accounts.sign_ins.service import Client
from tidegate.accounts.single_sign_on.dependencies import (
    AnswerDep,
    CountedCallback,
    CountedLogin,
    OpenedProviderDep,
    PendingCookieDep,
    SingleSignOnDep,
)
from tidegate.accounts.single_sign_on.landing import landing_page, refusal_page
from tidegate.accounts.single_sign_on.pending import HOME, local_path
from tidegate.accounts.single_sign_on.schemas import SingleSignOnState
from tidegate.auth.page_session import is_of_another_origin, refresh_cookie
from tidegate.errors import TidegateError
from tidegate.http.context import request_context
from tidegate.settings import Settings

# Beside those of every route of its kind: it is off; an account is being changed; the provider fails.
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"$ref": f"#/components/responses/{code}"} for code in (404, 409, 502)
}

router = APIRouter(prefix="/auth/sso", tags=["page"], dependencies=[Depends(never_stored)])


@router.get("")
async def single_sign_on_state(opened: OpenedProviderDep, request: Request) -> SingleSignOnState:
    """Whether people can sign in by a provider here, what a page calls that, and whether there is another way in."""
    settings: Settings = request.state.settings
    return SingleSignOnState(
        enabled=opened is not None,
        label=opened.settings.label if opened else None,
        password_log_in=settings.auth.password_log_in,
    )


@router.get(
    "/login",
    status_code=status.HTTP_302_FOUND,
    response_class=RedirectResponse,
    dependencies=[CountedLogin],
    responses=_ERRORS,
)
async def single_sign_on_login(
    single_sign_on: SingleSignOnDep,
    cookie: PendingCookieDep,
    request: Request,
    response: Response,
    next_path: Annotated[str, Query(alias="next", max_length=8192)] = "/",
) -> RedirectResponse:
    """Sends a browser to the provider. It is led on to `next` afterwards where that is a path of this gateway.

    Whom another site led here is sent to the page for signing in instead, whose button leads here again.
    """
    if is_of_another_origin(request):
        # The provider may ask nothing, and nobody is to be signed in unasked (OWASP ASVS 5, 7.6.2).
        return RedirectResponse(_sign_in_page(next_path), status.HTTP_302_FOUND, headers=dict(response.headers))
    begun = await single_sign_on.begin(next_path, refresh_cookie(request))
    redirect = RedirectResponse(begun.url, status.HTTP_302_FOUND, headers=dict(response.headers))
    redirect.headers.append("Set-Cookie", cookie.given(begun.sealed))
    return redirect


@router.get("/callback", response_class=HTMLResponse, dependencies=[CountedCallback], responses=_ERRORS)
async def single_sign_on_callback(
    single_sign_on: SingleSignOnDep,
    answer: AnswerDep,
    cookie: PendingCookieDep,
    request: Request,
    response: Response,
) -> HTMLResponse:
    """Signs a page in by what the provider answered, in the browser that began it, and leads it on.

    The sign-in that this browser had ends. Who is refused is shown why, on a page where they asked for one.
    """
    client = Client.of(request)
    try:
        pending = await single_sign_on.recognise(answer, request.cookies.get(cookie.name), client)
    except TidegateError as error:
        return _refusal(error, request, response)
    try:
        issued = await single_sign_on.finish(answer, pending, client)
    except TidegateError as error:
        error.headers["Set-Cookie"] = cookie.taken_back()
        return _refusal(error, request, response)
    page = HTMLResponse(landing_page(pending.next_path), headers=dict(response.headers))
    give_session(issued, request, page)
    page.headers.append("Set-Cookie", cookie.taken_back())
    return page


def _refusal(error: TidegateError, request: Request, response: Response) -> HTMLResponse:
    """A page for who reads it in a browser. Raises the error for who does not, which has the envelope then."""
    if "text/html" not in request.headers.get("accept", ""):
        raise error
    context = request_context(request.scope)
    context.error_code = error.http_code
    page = refusal_page(error.message, context.request_id)
    return HTMLResponse(page, status_code=error.http_status, headers={**response.headers, **error.headers})


def _sign_in_page(wanted_path: str) -> str:
    path = local_path(wanted_path)
    return "/sign-in" if path == HOME else f"/sign-in?next={quote(path)}"
