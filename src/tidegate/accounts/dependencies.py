"""The users of this process's database, as routes ask for them."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.accounts.service import Accounts
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.tokens import AccessTokens


def get_accounts(request: Request) -> Accounts:
    authenticator: Authenticator = request.state.authenticator
    return Accounts(request.state.database, authenticator.passwords)


def get_access_tokens(request: Request) -> AccessTokens:
    authenticator: Authenticator = request.state.authenticator
    return authenticator.tokens


AccountsDep = Annotated[Accounts, Depends(get_accounts)]
AccessTokensDep = Annotated[AccessTokens, Depends(get_access_tokens)]
