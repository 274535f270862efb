"""The users of this process's database as routes ask for them, and the limits on sensitive routes.

A route that takes a password, an e-mail or a token gets its body from `SensitiveRoute`, so it has none before the try
was counted:

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
from tidegate.accounts.tries import SENSITIVE, SensitiveName, Source, Tries
from tidegate.admission.running import Admission
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyrings
from tidegate.auth.tokens import AccessTokens
from tidegate.http.context import request_context

Body = TypeVar("Body", bound=BaseModel)


def get_accounts(request: Request) -> Accounts:
    authenticator: Authenticator = request.state.authenticator
    return Accounts(request.state.database, authenticator.passwords)


def get_access_tokens(request: Request) -> AccessTokens:
    authenticator: Authenticator = request.state.authenticator
    return authenticator.tokens


def get_tries(request: Request) -> Tries:
    admission: Admission = request.state.admission
    keyrings: Keyrings = request.state.keyrings
    return Tries(admission.desk, keyrings.peppers.current)


AccountsDep = Annotated[Accounts, Depends(get_accounts)]
AccessTokensDep = Annotated[AccessTokens, Depends(get_access_tokens)]
TriesDep = Annotated[Tries, Depends(get_tries)]


class SensitiveRoute(Generic[Body]):
    """A dependency that gives a route its body, once this try was counted. `name` says how many there may be.

    A body that is not valid is a 422 as ever, and no try. Raises `RateLimitExceeded`, and `Unavailable` as every limit.
    """

    def __init__(self, name: SensitiveName, body: type[Body]) -> None:
        self.name = name
        # What FastAPI reads instead of `__call__`'s own: a type variable would not tell it what to parse.
        given = {"body": body, "request": Request, "response": Response, "tries": TriesDep}
        self.__signature__ = Signature(
            [Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation) for name, annotation in given.items()]
        )

    async def __call__(self, *, body: Body, request: Request, response: Response, tries: Tries) -> Body:
        account: str | SecretStr = getattr(body, SENSITIVE[self.name].account)
        named = account.get_secret_value() if isinstance(account, SecretStr) else account
        address = request_context(request.scope).client_address
        response.headers.update(await tries.count(self.name, Source(named, address)))
        return body


LoginBody = Annotated[Login, Depends(SensitiveRoute("login", Login))]
