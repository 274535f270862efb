"""What is said of single sign-on over HTTP."""

from pydantic import BaseModel


class SingleSignOnState(BaseModel):
    """Whether there is single sign-on here, and what a page calls it: its button leads to `/auth/sso/login`."""

    enabled: bool
    label: str | None
