"""What is said of single sign-on over HTTP."""

from pydantic import BaseModel


class SingleSignOnState(BaseModel):
    """Whether there is single sign-on here, and what a page calls it: its button leads to `/auth/sso/login`.

    `password_log_in` is false where there is no other way in.
    """

    enabled: bool
    label: str | None
    password_log_in: bool
