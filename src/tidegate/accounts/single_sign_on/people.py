"""Whom the provider's claims tell of: who it is there, whether the address is theirs, and the role of their groups."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from email_validator import EmailNotValidError, validate_email

from tidegate.accounts.single_sign_on.refusals import Refused
from tidegate.auth.principal import Role
from tidegate.errors import PermissionDenied
from tidegate.settings.groups import SingleSignOnSettings

_LONGEST_EMAIL: Final = 254


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at the provider. `verified_email` is an address that it says is theirs, None where it says nothing.

    `role` is what their groups give; None where the settings name no groups of admins, so that it is set here.
    """

    issuer: str
    subject: str
    verified_email: str | None
    role: Role | None


def person_of(claims: Mapping[str, Any], issuer: str, settings: SingleSignOnSettings) -> Person:
    """Raises `Refused` for one whom no group lets in, and for an address that the provider says is not verified."""
    email = _email(claims.get("email"))
    is_verified = _is_true(claims.get("email_verified"))
    if is_verified is False:
        told = PermissionDenied("Your address is not verified at the single sign-on provider: verify it there.")
        raise Refused("email_not_verified", told, email=email)
    role = _role(_groups(claims.get(settings.groups_claim)), settings, email)
    return Person(issuer, claims["sub"], email if is_verified else None, role)


def _email(claim: object) -> str | None:
    if not isinstance(claim, str) or len(claim) > _LONGEST_EMAIL:
        return None
    # Normalising folds signs into others (Kelvin's into K): of two mailboxes, one would open the other's account.
    if not unicodedata.is_normalized("NFC", claim):
        return None
    try:
        return validate_email(claim, check_deliverability=False).normalized.lower()
    except EmailNotValidError:
        return None


def _is_true(claim: object) -> bool | None:
    """None where it says neither. Amazon Cognito writes it as a string."""
    if isinstance(claim, bool):
        return claim
    return {"true": True, "false": False}.get(claim) if isinstance(claim, str) else None


def _groups(claim: object) -> frozenset[str]:
    listed = claim if isinstance(claim, list) else [claim]
    return frozenset(group for group in listed if isinstance(group, str))


def _role(groups: frozenset[str], settings: SingleSignOnSettings, email: str | None) -> Role | None:
    if groups & set(settings.admin_groups):
        return "admin"
    if settings.member_groups and not groups & set(settings.member_groups):
        told = PermissionDenied(
            "None of your groups at the single sign-on provider may use this gateway: ask an admin to have you put "
            "into one that may."
        )
        raise Refused("no_group", told, email=email)
    return "member" if settings.admin_groups else None
