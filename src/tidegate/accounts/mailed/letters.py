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


def second_factor_on(to: str) -> Message:
    said = "Logging in to your account by its password takes a code of your authenticator app from now on."
    more = "Your sign-ins elsewhere have ended. Keep your recovery codes where you find them without that app."
    return Message("second_factor_on", to, "Your Tidegate account has a second factor", (said, more, _ASK))


def second_factor_off(to: str) -> Message:
    said = "The second factor of your account was turned off: your password alone opens it now."
    return Message("second_factor_off", to, "The second factor of your Tidegate account is off", (said, _ASK))


def second_factor_reset(to: str) -> Message:
    said = "An admin took the second factor of your account away, and your sign-ins have ended."
    todo = (
        "Your password alone opens it now: log in, and set up another. If you did not ask for this, tell them at once."
    )
    return Message("second_factor_reset", to, "The second factor of your Tidegate account was reset", (said, todo))


def recovery_code_used(to: str) -> Message:
    said = "A recovery code stood for the second factor of your account. It works no more."
    return Message("recovery_code_used", to, "A recovery code of your Tidegate account was used", (said, _ASK))


def recovery_codes_replaced(to: str) -> Message:
    said = "Your account has new recovery codes, and the old ones work no more."
    return Message("recovery_codes_replaced", to, "Your Tidegate account has new recovery codes", (said, _ASK))


def codes_are_guessed(to: str) -> Message:
    said = "Somebody who knows the password of your account wrote ten wrong codes of your second factor in a row."
    todo = (
        "If that was not you, change your password now. After a hundred of them only a recovery code opens the account."
    )
    return Message("codes_are_guessed", to, "Wrong codes for your Tidegate account", (said, todo))


def codes_are_refused(to: str) -> Message:
    said = "A hundred wrong codes of your second factor were written in a row, by somebody who knows your password."
    todo = (
        "No code of your authenticator app opens your account any more, until you log in by a recovery code. If this "
        "was not you, change your password then. Without recovery codes, ask who runs your Tidegate to reset it."
    )
    return Message("codes_are_refused", to, "Your Tidegate account takes a recovery code alone", (said, todo))
