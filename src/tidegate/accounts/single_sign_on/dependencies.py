"""Single sign-on as routes ask for it."""

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.dependencies import Sensitive, TriesDep
from tidegate.accounts.sign_ins.dependencies import SignInsDep, UserChangedDep
from tidegate.accounts.single_sign_on.pending import PendingCookie
from tidegate.accounts.single_sign_on.service import OpenedProvider, ProviderAnswer, SingleSignOn
from tidegate.errors import InvalidRequest, NotFound
from tidegate.storage.dependencies import DatabaseDep

_ANSWER = ("state", "code", "error", "iss")
_LONGEST = 4096
Given = Annotated[str | None, Query(max_length=_LONGEST)]


class SensitiveAddress(Sensitive):
    """A dependency that stands before a route which names nobody, and counts its tries by the client's address."""

    async def __call__(self, request: Request, response: Response, tries: TriesDep) -> None:
        await self.count(None, request, response, tries)


def get_opened_provider(request: Request) -> OpenedProvider | None:
    opened: OpenedProvider | None = request.state.single_sign_on
    return opened


OpenedProviderDep = Annotated[OpenedProvider | None, Depends(get_opened_provider)]


def get_single_sign_on(
    opened: OpenedProviderDep, database: DatabaseDep, sign_ins: SignInsDep, changed: UserChangedDep
) -> SingleSignOn:
    if opened is None:
        raise NotFound("Single sign-on is off here: an operator turns it on by TIDEGATE_SINGLE_SIGN_ON__ISSUER.")
    return SingleSignOn(opened, database, sign_ins, changed=changed)


def get_answer(
    request: Request, state: Given = None, code: Given = None, error: Given = None, iss: Given = None
) -> ProviderAnswer:
    """Raises `InvalidRequest` for what stands there twice (RFC 6749, 3.1). Further parameters are let be."""
    for name in _ANSWER:
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest(f"The parameter {name!r} stands there more than once.", param=name)
    return ProviderAnswer(state=state, code=code, error=error, issuer=iss)


SingleSignOnDep = Annotated[SingleSignOn, Depends(get_single_sign_on)]
AnswerDep = Annotated[ProviderAnswer, Depends(get_answer)]
PendingCookieDep = Annotated[PendingCookie, Depends(PendingCookie.of)]
CountedLogin = Depends(SensitiveAddress("sso-login"))
CountedCallback = Depends(SensitiveAddress("sso-callback"))
