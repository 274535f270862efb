"""What is said of second factors over HTTP."""

from typing import Annotated

from pydantic import BaseModel, Field

from tidegate.accounts.schemas import Code, CurrentPassword, Input


class SecondFactorForm(Input):
    """The caller's current password: an access token alone sets up nothing."""

    password: CurrentPassword


class SecondFactorCode(Input):
    """The code that the app shows for the new secret: 6 digits."""

    code: Code


class SecondFactorProof(Input):
    """The caller's current password, and a code of their second factor: 6 digits, or a recovery code."""

    password: CurrentPassword
    code: Code


class Proof(Input):
    """What is needed where the sign-in is more than 10 minutes old: the current password, and a code where there is a
    second factor.
    """

    password: CurrentPassword | None = None
    code: Code | None = None


class NewSecondFactor(BaseModel):
    """A secret for an authenticator app, shown once: in base32, and as the address that an app opens or reads as a QR
    code. It counts for nothing before it is confirmed.
    """

    secret: str
    uri: Annotated[str, Field(examples=["otpauth://totp/Tidegate:ada@example.com?secret=…&issuer=Tidegate"])]


class RecoveryCodes(BaseModel):
    """Recovery codes, shown once: each stands for the second factor once."""

    recovery_codes: list[str]
