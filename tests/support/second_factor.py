"""An authenticator app beside a whole app, and what it is used for: setting up, logging in."""

import base64
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import httpx2

from tests.support.people import PASSWORD, People
from tidegate.accounts.second_factor.totp import STEP_S, code_at


@dataclass
class Phone:
    """The app of one user. `recovery_codes` are those that confirming gave; `access` the token that did it."""

    people: People
    whose: str
    secret: bytes
    access: str
    recovery_codes: list[str] = field(default_factory=list)

    @classmethod
    async def begun(cls, people: People, whose: str, access: str | None = None) -> Self:
        """A secret that is not confirmed yet."""
        if access is None:
            access = await people.log_in(f"{whose}@example.com")
        assert access is not None
        told = await people.done("POST", "/auth/second-factor", by=access, json={"password": PASSWORD})
        assert told.keys() == {"secret", "uri"}
        padded = told["secret"] + "=" * (-len(told["secret"]) % 8)
        return cls(people, whose, base64.b32decode(padded), access)

    @classmethod
    async def set_up(cls, people: People, whose: str, access: str | None = None) -> Self:
        """One that counts. The code that confirmed it is used up."""
        phone = await cls.begun(people, whose, access)
        told = await people.done("POST", "/auth/second-factor/confirm", by=phone.access, json={"code": phone.code()})
        phone.recovery_codes = told["recovery_codes"]
        return phone

    def code(self, *, beside: int = 0) -> str:
        """What it shows now, or so many steps beside."""
        return code_at(self.secret, int(self.people.clock.now.timestamp() // STEP_S) + beside)

    def next_code(self) -> str:
        """What it shows in the next step, which has come."""
        self.people.clock.now += timedelta(seconds=STEP_S)
        return self.code()

    async def log_in(self, code: str | None, password: str = PASSWORD, **form: Any) -> httpx2.Response:
        body = {"email": f"{self.whose}@example.com", "password": password, **form}
        return await self.people.client.post("/auth/login", json=body | ({} if code is None else {"code": code}))
