"""Signing in and out, and who one is."""

import uuid

from fastapi import APIRouter, Depends, status

from tidegate.accounts.dependencies import BY_PASSWORD, AccountsDep, LoggedIn, LogoutBody, RefreshBody
from tidegate.accounts.schemas import Me
from tidegate.accounts.second_factor.proving import PROVEN_AGAIN
from tidegate.accounts.sign_ins.dependencies import ClientDep, SignInsDep, never_stored
from tidegate.accounts.sign_ins.schemas import SignInList, SignInView, Tokens
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import Caller, UserCaller, open_without_second_factor

router = APIRouter(prefix="/auth", tags=["accounts"], dependencies=[Depends(never_stored)])


@router.post("/login", dependencies=[BY_PASSWORD])
async def login(issued: LoggedIn) -> Tokens:
    """An access token and a refresh token for an e-mail address and its password.

    A 401 `second_factor_required` says that the password was right, and that a `code` is to be sent with it; a 403 that
    the password has ended, or that people come in by single sign-on alone here.
    """
    return Tokens.of(issued)


@router.post("/refresh")
async def refresh(body: RefreshBody, sign_ins: SignInsDep, client: ClientDep) -> Tokens:
    """New tokens for a refresh token, which is used up.

    One that is used again ends its sign-in; within 10 s of its use it is a 409 that ends nothing.
    """
    return Tokens.of(await sign_ins.refresh(body.refresh_token.get_secret_value(), client))


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT)
async def logout(body: LogoutBody, sign_ins: SignInsDep, client: ClientDep) -> None:
    """Ends the sign-in of a refresh token, within a second. A token that nobody was given ends nothing."""
    await sign_ins.end_by_refresh_token(body.refresh_token.get_secret_value(), client)


@router.post("/logout/everywhere", status_code=status.HTTP_204_NO_CONTENT, dependencies=[PROVEN_AGAIN])
async def logout_everywhere(caller: UserCaller, actor: ActorDep, sign_ins: SignInsDep) -> None:
    """Ends every sign-in of the caller, this one too, within a second. Their API keys stay.

    A 403 `reauthentication_required` says that the caller's own is more than 10 minutes old: a proof is to be sent.
    """
    assert caller.user_id is not None
    await sign_ins.end_all(caller.user_id, caller.workspace_id, actor)


@router.get("/sign-ins")
async def list_sign_ins(caller: UserCaller, sign_ins: SignInsDep) -> SignInList:
    """The caller's own sign-ins that have neither ended nor expired, the newest hundred."""
    assert caller.user_id is not None
    rows = await sign_ins.live(caller.user_id)
    return SignInList(data=[SignInView.of(row, caller.sign_in_id) for row in rows])


@router.delete("/sign-ins/{sign_in_id}", status_code=status.HTTP_204_NO_CONTENT, dependencies=[PROVEN_AGAIN])
async def end_sign_in(sign_in_id: uuid.UUID, caller: UserCaller, actor: ActorDep, sign_ins: SignInsDep) -> None:
    """Ends one of the caller's own sign-ins, within a second. A 403 is as of /auth/logout/everywhere."""
    assert caller.user_id is not None
    await sign_ins.end(caller.user_id, sign_in_id, actor)


@router.get("/me")
@open_without_second_factor
async def me(caller: Caller, accounts: AccountsDep) -> Me:
    """Whose credentials these are, and what they may do."""
    return await accounts.describe(caller)
