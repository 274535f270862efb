"""Second factors as routes ask for them."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.accounts.second_factor.sealing import Sealing
from tidegate.accounts.second_factor.service import SecondFactors
from tidegate.accounts.sign_ins.dependencies import UserChangedDep
from tidegate.accounts.users.dependencies import PasswordsDep
from tidegate.auth.keyring import Keyrings
from tidegate.mail.dependencies import PostDep
from tidegate.storage.dependencies import DatabaseDep


def get_second_factors(
    request: Request, database: DatabaseDep, passwords: PasswordsDep, post: PostDep, changed: UserChangedDep
) -> SecondFactors:
    keyrings: Keyrings = request.state.keyrings
    return SecondFactors(database, passwords, Sealing(keyrings.encryption), post, changed=changed)


SecondFactorsDep = Annotated[SecondFactors, Depends(get_second_factors)]
