"""The users of this process's database as routes ask for them, and the limits on sensitive routes.

A route that takes a password, an e-mail or a token gets its body from `SensitiveRoute`, so it has none before the try
was counted; the page's routes get their cookie from `SensitiveCookie`:

    LoginBody = Annotated[Login, Depends(SensitiveRoute("login", Login))]
"""

from inspect import Parameter, Signature
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends
from pydantic import BaseModel, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.known_browsers import KnownBrowsers
from tidegate.accounts.schemas import Login
from tidegate.accounts.second_factor.dependencies import SecondFactorsDep
from tidegate.accounts.second_factor.service import WrongCode
from tidegate.accounts.service import Accounts, require_passwords
from tidegate.accounts.sign_ins.dependencies import ClientDep, SignInsDep
from tidegate.accounts.sign_ins.schemas import RefreshTokenForm
from tidegate.accounts.sign_ins.service import IssuedTokens
from tidegate.accounts.tries import BY_USER, SENSITIVE, SensitiveName, Source, Tries
from tidegate.admission.running import Admission
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.dependencies import UserCaller
from tidegate.auth.keyring import Keyrings
from tidegate.auth.page_session import PageCookies, refresh_cookie
from tidegate.auth.principal import Principal
from tidegate.errors import AuthenticationError, PermissionDenied, SecondFactorRequired
from tidegate.http.context import request_context
from tidegate.settings import Settings

Body = TypeVar("Body", bound=BaseModel)


def get_accounts(request: Request) -> Accounts:
    authenticator: Authenticator = request.state.authenticator
    settings: Settings = request.state.settings
    days = settings.auth.initial_password_days
    return Accounts(request.state.database, authenticator.passwords, initial_password_days=days)


def get_tries(request: Request) -> Tries:
    admission: Admission = request.state.admission
    keyrings: Keyrings = request.state.keyrings
    return Tries(admission.desk, keyrings.peppers.current)


def known_browsers(request: Request) -> KnownBrowsers:
    keyrings: Keyrings = request.state.keyrings
    return KnownBrowsers(keyrings.jwt)


async def require_password_log_in(request: Request) -> None:
    """As `require_passwords`, of a request."""
    require_passwords(request.state.settings)


BY_PASSWORD = Depends(require_password_log_in)
AccountsDep = Annotated[Accounts, Depends(get_accounts)]
TriesDep = Annotated[Tries, Depends(get_tries)]


class Sensitive:
    """What stands before a sensitive route and counts its tries. `name` says how many there may be."""

    def __init__(self, name: SensitiveName) -> None:
        self.name = name

    async def count(self, account: str | None, request: Request, response: Response, tries: Tries) -> None:
        """Raises `RateLimitExceeded`, and `Unavailable` as every limit."""
        address = request_context(request.scope).client_address
        browser = None if account is None else self.browser(account, request)
        response.headers.update(await tries.count(self.name, Source(account, address, browser)))

    def browser(self, account: str, request: Request) -> str | None:
        """The browser's name where it is known for this account, and that counts here."""
        if not SENSITIVE[self.name].by_browser or not request.cookies:
            return None
        cookie = PageCookies.of(request).known_browser(request)
        return None if cookie is None else known_browsers(request).recognised(account, cookie)


class SensitiveRoute(Sensitive, Generic[Body]):
    """A dependency that gives a route its body, once this try was counted: by who is signed in where `name` says so.

    A body that is not valid is a 422 as ever, and no try.
    """

    def __init__(self, name: SensitiveName, body: type[Body]) -> None:
        super().__init__(name)
        # What FastAPI reads instead of `__call__`'s own: a type variable would not tell it what to parse.
        given: dict[str, Any] = {"body": body, "request": Request, "response": Response, "tries": TriesDep}
        if SENSITIVE[name].account == BY_USER:
            given["caller"] = UserCaller
        self.__signature__ = Signature(
            [Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation) for name, annotation in given.items()]
        )

    async def __call__(
        self, *, body: Body, request: Request, response: Response, tries: Tries, caller: Principal | None = None
    ) -> Body:
        await self.count(self._account(body, caller), request, response, tries)
        return body

    def _account(self, body: Body, caller: Principal | None) -> str | None:
        if caller is not None:
            return str(caller.user_id)
        field = SENSITIVE[self.name].account
        account: str | SecretStr | None = None if field is None else getattr(body, field)
        return account.get_secret_value() if isinstance(account, SecretStr) else account


class SensitiveCookie(Sensitive):
    """A dependency that gives a route the page's refresh token, None where there is none, once this try was counted."""

    async def __call__(self, request: Request, response: Response, tries: TriesDep) -> str | None:
        token = refresh_cookie(request)
        await self.count(token, request, response, tries)
        return token


LoginBody = Annotated[Login, Depends(SensitiveRoute("login", Login))]
RefreshBody = Annotated[RefreshTokenForm, Depends(SensitiveRoute("refresh", RefreshTokenForm))]
LogoutBody = Annotated[RefreshTokenForm, Depends(SensitiveRoute("logout", RefreshTokenForm))]
CookieToRefresh = Annotated[str | None, Depends(SensitiveCookie("refresh"))]
CookieToEnd = Annotated[str | None, Depends(SensitiveCookie("logout"))]


async def log_in(
    body: LoginBody,
    accounts: AccountsDep,
    second_factors: SecondFactorsDep,
    sign_ins: SignInsDep,
    client: ClientDep,
) -> IssuedTokens:
    """A sign-in by e-mail address and password, and a code where there is a second factor.

    Raises `AuthenticationError` and, for a password that has ended, `PermissionDenied`: both are written down.
    """
    code = None if body.code is None else body.code.get_secret_value()
    try:
        user = await accounts.sign_in(body.email, body.password.get_secret_value(), has_code=code is not None)
        passed = await second_factors.pass_log_in(user, code, client)
        return await sign_ins.begin(user, client, "password", second_factor=passed)
    except (AuthenticationError, PermissionDenied) as refusal:
        await sign_ins.note_refusal(body.email, client, _reason_of(refusal))
        raise


def _reason_of(refusal: AuthenticationError | PermissionDenied) -> str | None:
    """What is written down beside a refusal of who knew the password, as far as it is of their second factor."""
    if isinstance(refusal, SecondFactorRequired):
        return "no_code"
    return "wrong_code" if isinstance(refusal, WrongCode) else None


LoggedIn = Annotated[IssuedTokens, Depends(log_in)]
