"""The users of this process's database as routes ask for them, and the limits on sensitive routes.

A route that takes a password, an e-mail or a token gets its body from `SensitiveRoute`, so it has none before the try
was counted; the page's routes get their cookie from `SensitiveCookie`:

    LoginBody = Annotated[Login, Depends(SensitiveRoute("login", Login))]
"""

from inspect import Parameter, Signature
from typing import Annotated, Generic, TypeVar

from fastapi import Depends
from pydantic import BaseModel, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.schemas import Login
from tidegate.accounts.service import Accounts
from tidegate.accounts.sign_ins.dependencies import ClientDep, SignInsDep
from tidegate.accounts.sign_ins.schemas import RefreshTokenForm
from tidegate.accounts.sign_ins.service import IssuedTokens
from tidegate.accounts.tries import SENSITIVE, SensitiveName, Source, Tries
from tidegate.admission.running import Admission
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyrings
from tidegate.auth.page_session import refresh_cookie
from tidegate.errors import AuthenticationError
from tidegate.http.context import request_context

Body = TypeVar("Body", bound=BaseModel)


def get_accounts(request: Request) -> Accounts:
    authenticator: Authenticator = request.state.authenticator
    return Accounts(request.state.database, authenticator.passwords)


def get_tries(request: Request) -> Tries:
    admission: Admission = request.state.admission
    keyrings: Keyrings = request.state.keyrings
    return Tries(admission.desk, keyrings.peppers.current)


AccountsDep = Annotated[Accounts, Depends(get_accounts)]
TriesDep = Annotated[Tries, Depends(get_tries)]


class Sensitive:
    """What stands before a sensitive route and counts its tries. `name` says how many there may be."""

    def __init__(self, name: SensitiveName) -> None:
        self.name = name

    async def count(self, account: str | None, request: Request, response: Response, tries: Tries) -> None:
        """Raises `RateLimitExceeded`, and `Unavailable` as every limit."""
        address = request_context(request.scope).client_address
        response.headers.update(await tries.count(self.name, Source(account, address)))


class SensitiveRoute(Sensitive, Generic[Body]):
    """A dependency that gives a route its body, once this try was counted.

    A body that is not valid is a 422 as ever, and no try.
    """

    def __init__(self, name: SensitiveName, body: type[Body]) -> None:
        super().__init__(name)
        # What FastAPI reads instead of `__call__`'s own: a type variable would not tell it what to parse.
        given = {"body": body, "request": Request, "response": Response, "tries": TriesDep}
        self.__signature__ = Signature(
            [Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation) for name, annotation in given.items()]
        )

    async def __call__(self, *, body: Body, request: Request, response: Response, tries: Tries) -> Body:
        field = SENSITIVE[self.name].account
        account: str | SecretStr | None = None if field is None else getattr(body, field)
        named = account.get_secret_value() if isinstance(account, SecretStr) else account
        await self.count(named, request, response, tries)
        return body


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


async def log_in(body: LoginBody, accounts: AccountsDep, sign_ins: SignInsDep, client: ClientDep) -> IssuedTokens:
    """A sign-in by e-mail address and password. Raises `AuthenticationError`, which is written down."""
    try:
        user = await accounts.sign_in(body.email, body.password.get_secret_value())
        return await sign_ins.begin(user, client, "password")
    except AuthenticationError:
        await sign_ins.note_refusal(body.email, client)
        raise


LoggedIn = Annotated[IssuedTokens, Depends(log_in)]
