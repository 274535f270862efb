"""The page's session over HTTP: log-in, refresh and log-out, with the tokens in cookies alone.

Every route here is for the gateway's own page: another site's is refused, at the log-in too, so that nobody is signed
in as somebody else unawares.
"""

from fastapi import APIRouter, Depends, Response, status
from starlette.requests import Request

from tidegate.accounts.dependencies import (
    BY_PASSWORD,
    CookieToEnd,
    CookieToRefresh,
    LoggedIn,
    LoginBody,
    known_browsers,
)
from tidegate.accounts.known_browsers import LIFETIME_S
from tidegate.accounts.sign_ins.dependencies import ClientDep, SignInsDep, never_stored
from tidegate.accounts.sign_ins.schemas import PageSession
from tidegate.accounts.sign_ins.service import IssuedTokens
from tidegate.auth.page_session import REFRESH_PATH, PageCookies, refresh_cookie, require_own_page
from tidegate.errors import MissingCredentials

router = APIRouter(prefix=REFRESH_PATH, tags=["page"], dependencies=[Depends(require_own_page), Depends(never_stored)])


@router.post("/login", dependencies=[BY_PASSWORD])
async def page_login(
    *, issued: LoggedIn, body: LoginBody, request: Request, response: Response, sign_ins: SignInsDep, client: ClientDep
) -> PageSession:
    """Signs the page in by an e-mail address and its password, and ends the sign-in that this browser had.

    The browser is known from now on: guessing from elsewhere does not keep this account out of it.
    """
    cookies = PageCookies.of(request)
    known = known_browsers(request).remembered(body.email, cookies.known_browser(request))
    cookies.remember(response, known, LIFETIME_S)
    before = refresh_cookie(request)
    if before is not None:
        # Its tokens are overwritten below: nobody could end it any more, and a thief of them could go on.
        await sign_ins.end_by_refresh_token(before, client)
    return give_session(issued, request, response)


@router.post("/refresh")
async def page_refresh(
    token: CookieToRefresh, request: Request, response: Response, sign_ins: SignInsDep, client: ClientDep
) -> PageSession:
    """New cookies for the page. A 409 says that another tab has them already: go on."""
    if token is None:
        raise MissingCredentials("This browser has no session here: sign in.")
    return give_session(await sign_ins.refresh(token, client), request, response)


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT)
async def page_logout(
    token: CookieToEnd, request: Request, response: Response, sign_ins: SignInsDep, client: ClientDep
) -> None:
    """Ends the page's sign-in within a second, and has the browser forget its cookies."""
    if token is not None:
        await sign_ins.end_by_refresh_token(token, client)
    PageCookies.of(request).take_back(response)


def give_session(issued: IssuedTokens, request: Request, response: Response) -> PageSession:
    """Puts tokens into the page's cookies. Returns what the page may know of them."""
    PageCookies.of(request).give(
        response,
        access=(issued.access_token, issued.expires_in),
        refresh=(issued.refresh_token, issued.refresh_expires_in),
    )
    return PageSession.of(issued)
