"""Who is calling, and what they may do. A principal is a value: it was judged once and holds no session."""

import fnmatch
import uuid
from typing import Literal

import msgspec

from tidegate.auth.addresses import AllowedAddresses

Scope = Literal["inference", "usage", "manage", "metrics"]
Role = Literal["admin", "member"]
SecondFactorRule = Literal["optional", "required", "admins"]
"""Who needs a second factor of those who log in by a password."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A caller: an API key (`key_id` set) or a signed-in user (`key_id` null).

    `models` are names, groups or patterns that a key is held to; None holds it to none. `role` is a user's: an admin
    acts in every workspace, a member in theirs. `email` and `sign_in_id` are a signed-in user's. `expires_at` is Unix
    seconds. `allowed_from` is where a key may be used from; None is from anywhere. `queue_weight`, from 1 to 100, is
    the caller's share of an upstream's queue beside others. `signed_in_at` is when a signed-in user logged in, in Unix
    seconds; one who owes a second factor may do no more than set it up.
    """

    workspace_id: uuid.UUID
    key_id: uuid.UUID | None = None
    key_prefix: str | None = None
    user_id: uuid.UUID | None = None
    role: Role | None = None
    email: str | None = None
    sign_in_id: uuid.UUID | None = None
    scopes: frozenset[Scope] = frozenset({"inference"})
    models: tuple[str, ...] | None = None
    expires_at: float | None = None
    trusts_attribution: bool = False
    queue_weight: int = 1
    allowed_from: AllowedAddresses | None = None
    signed_in_at: float | None = None
    owes_second_factor: bool = False

    @property
    def is_signed_in_admin(self) -> bool:
        """Whether this is an admin in person: a key acts in its own workspace, whoever owns it."""
        return self.role == "admin" and self.key_id is None

    def may_use(self, name: str, groups: tuple[str, ...] = ()) -> bool:
        """Whether the key's list admits this model: by its name, by one of its groups, or by a pattern (`gpt-*`)."""
        if self.models is None:
            return True
        return any(name == held or held in groups or fnmatch.fnmatchcase(name, held) for held in self.models)
