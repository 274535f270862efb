"""Signing in, and who one is."""

from fastapi import APIRouter, Response

from tidegate.accounts.dependencies import AccessTokensDep, AccountsDep, LoginBody
from tidegate.accounts.schemas import Me, Token
from tidegate.auth.dependencies import Caller

router = APIRouter(prefix="/auth", tags=["accounts"])


@router.post("/login")
async def login(body: LoginBody, response: Response, accounts: AccountsDep, tokens: AccessTokensDep) -> Token:
    """An access token for an e-mail address and its password."""
    user = await accounts.sign_in(body.email, body.password.get_secret_value())
    response.headers["Cache-Control"] = "no-store"  # RFC 6749, 5.1
    return Token(access_token=tokens.issue(user.id), expires_in=tokens.lifetime_s)


@router.get("/me")
async def me(caller: Caller, accounts: AccountsDep) -> Me:
    """Whose credentials these are, and what they may do."""
    return await accounts.describe(caller)
