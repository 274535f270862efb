"""Why single sign-on lets somebody not in: what they are told, and what the audit trail says of it."""

from typing import Literal

from tidegate.errors import TidegateError

Reason = Literal[
    "no_log_in_under_way",
    "other_state",
    "other_issuer",
    "refused_by_provider",
    "code_not_accepted",
    "id_token_not_trusted",
    "no_email",
    "email_not_verified",
    "no_group",
    "disabled",
    "linked_to_another",
]


class Refused(Exception):
    """A log-in that ends here. `error` is what its browser is answered, `email` who it said it was."""

    def __init__(self, reason: Reason, error: TidegateError, *, email: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.email = email
