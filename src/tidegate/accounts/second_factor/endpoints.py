"""Second factors over HTTP: one's own. An admin's reset of another's is beside the users."""

from fastapi import APIRouter, Depends, status

from tidegate.accounts.dependencies import BY_PASSWORD
from tidegate.accounts.second_factor.dependencies import SecondFactorsDep
from tidegate.accounts.second_factor.proving import CodeBody, FormBody, ProofBody
from tidegate.accounts.second_factor.schemas import NewSecondFactor, RecoveryCodes
from tidegate.accounts.sign_ins.dependencies import never_stored
from tidegate.audit.dependencies import ActorDep
from tidegate.auth.dependencies import UserCaller, open_without_second_factor

router = APIRouter(prefix="/auth/second-factor", tags=["accounts"], dependencies=[BY_PASSWORD, Depends(never_stored)])


@router.post("", status_code=status.HTTP_201_CREATED)
@open_without_second_factor
async def begin_second_factor(
    body: FormBody, caller: UserCaller, actor: ActorDep, second_factors: SecondFactorsDep
) -> NewSecondFactor:
    """A new secret for an authenticator app (TOTP, RFC 6238), by the current password. It waits an hour for its code.

    A 409 says that there is a second factor already.
    """
    begun = await second_factors.begin(caller, body.password.get_secret_value(), actor)
    return NewSecondFactor(secret=begun.secret, uri=begun.uri)


@router.post("/confirm")
@open_without_second_factor
async def confirm_second_factor(
    body: CodeBody, caller: UserCaller, actor: ActorDep, second_factors: SecondFactorsDep
) -> RecoveryCodes:
    """Turns the second factor on by its first code, and ends the caller's other sign-ins within a second.

    The answer has the recovery codes, which are shown once.
    """
    codes = await second_factors.confirm(caller, body.code.get_secret_value(), actor)
    return RecoveryCodes(recovery_codes=list(codes))


@router.delete("", status_code=status.HTTP_204_NO_CONTENT)
async def turn_second_factor_off(
    body: ProofBody, caller: UserCaller, actor: ActorDep, second_factors: SecondFactorsDep
) -> None:
    """Takes the second factor and its recovery codes away, by the current password and a code."""
    password, code = body.password.get_secret_value(), body.code.get_secret_value()
    await second_factors.turn_off(caller, password, code, actor)


@router.post("/recovery-codes")
async def renew_recovery_codes(
    body: ProofBody, caller: UserCaller, actor: ActorDep, second_factors: SecondFactorsDep
) -> RecoveryCodes:
    """New recovery codes in place of the old ones, by the current password and a code."""
    password, code = body.password.get_secret_value(), body.code.get_secret_value()
    codes = await second_factors.renew_recovery_codes(caller, password, code, actor)
    return RecoveryCodes(recovery_codes=list(codes))
