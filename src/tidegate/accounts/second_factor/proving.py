"""Who proves again who they are, before what a stolen sign-in must not do (OWASP ASVS 5, 7.5.2).

A log-in of the last 10 minutes is proof enough, by whichever way it was; else the password is, and a code where there
is a second factor. Who has no password here logs in by single sign-on again.
"""

import time
from typing import Annotated, Final

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.dependencies import Sensitive, SensitiveRoute, TriesDep
from tidegate.accounts.second_factor.dependencies import SecondFactorsDep
from tidegate.accounts.second_factor.schemas import Proof, SecondFactorCode, SecondFactorForm, SecondFactorProof
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import UserCaller
from tidegate.errors import ProofRequired
from tidegate.settings import Settings

FRESH_FOR_S: Final = 600
_NEEDED: Final = f"This takes that you signed in within the last {FRESH_FOR_S // 60} minutes"


class ProvenAgain(Sensitive):
    """A dependency that lets through who signed in lately, or proves with this request who they are.

    A proof that is sent is judged, whether or not it is needed, and is a try, counted by the caller. Raises
    `ProofRequired` where there is neither, `InvalidRequest` for a wrong one.
    """

    async def __call__(
        self,
        *,
        caller: UserCaller,
        actor: ActorDep,
        request: Request,
        response: Response,
        tries: TriesDep,
        second_factors: SecondFactorsDep,
        body: Proof | None = None,
    ) -> None:
        settings: Settings = request.state.settings
        takes_proof = settings.auth.password_log_in
        has_proof = body is not None and (body.password is not None or body.code is not None)
        is_fresh = caller.signed_in_at is not None and time.time() - caller.signed_in_at < FRESH_FOR_S
        if is_fresh and not (has_proof and takes_proof):
            return
        if not takes_proof:
            raise ProofRequired(f"{_NEEDED}: sign in again.")
        if body is None or body.password is None:
            raise ProofRequired(
                f"{_NEEDED}, or your `password` with the request, and where you have a second factor its `code`: sign "
                "in again, or send them."
            )
        await self.count(str(caller.user_id), request, response, tries)
        code = None if body.code is None else body.code.get_secret_value()
        await second_factors.prove(caller, body.password.get_secret_value(), code, actor)


PROVEN_AGAIN = Depends(ProvenAgain("prove-again"))
FormBody = Annotated[SecondFactorForm, Depends(SensitiveRoute("second-factor", SecondFactorForm))]
CodeBody = Annotated[SecondFactorCode, Depends(SensitiveRoute("second-factor", SecondFactorCode))]
ProofBody = Annotated[SecondFactorProof, Depends(SensitiveRoute("second-factor", SecondFactorProof))]
