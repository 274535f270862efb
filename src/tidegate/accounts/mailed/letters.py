"""What the e-mails of accounts say."""

from typing import Final

from tidegate.mail.message import Message

_IGNORE: Final = "If you did not ask for this, do nothing: nothing changes."
_ASK: Final = "If that was not you, tell an admin of your gateway at once."


def invitation(to: str, workspace: str, made_by: str | None, link: str) -> Message:
    # A key's prefix says nothing to people.
    who = f"{made_by} invites you" if made_by and "@" in made_by else "You are invited"
    return Message(
        "invitation",
        to,
        "Your invitation to Tidegate",
        (
            f"{who} to the workspace {workspace} of a Tidegate gateway. Choose your password here:",
            "The link works once, for 7 days. If you did not expect it, do nothing.",
        ),
        link,
    )


def password_reset(to: str, link: str) -> Message:
    return Message(
        "password_reset",
        to,
        "A new password for Tidegate",
        ("Choose a new password for your account here:", f"The link works once, for 30 minutes. {_IGNORE}"),
        link,
    )


def password_changed(to: str) -> Message:
    said = "The password of your account was changed, and your sign-ins elsewhere have ended."
    return Message("password_changed", to, "Your Tidegate password was changed", (said, _ASK))


def email_change(to: str, link: str) -> Message:
    return Message(
        "email_change",
        to,
        "Your new address at Tidegate",
        ("Confirm that this is to be the address of your account here:", f"The link works once, for a day. {_IGNORE}"),
        link,
    )


def email_change_asked(to: str, new: str) -> Message:
    said = f"Somebody who knows your password asked that {new} become the address of your account."
    todo = "It does once that address confirms. If that was not you, change your password now: that stops it."
    return Message("email_change_asked", to, "Your address at Tidegate is about to change", (said, todo))


def email_changed(to: str, new: str) -> Message:
    said = f"The address of your account is {new} now, and your sign-ins have ended."
    return Message("email_changed", to, "Your address at Tidegate was changed", (said, _ASK))
