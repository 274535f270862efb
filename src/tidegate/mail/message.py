"""An e-mail as features write it, and as it is sent: plain text and HTML that say the same.

Nothing in it is fetched from elsewhere, what is said is escaped, and a header never holds a line of its own: the
standard library's policy refuses one that does.
"""

import html
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime, make_msgid
from typing import Final

from email_validator import EmailNotValidError, validate_email

from tidegate.ledger.entry import utc_now

_SENDER_NAME: Final = "Tidegate"


@dataclass(frozen=True, slots=True)
class Message:
    """An e-mail to one address. `kind` is what logs call it; `link` stands after the first paragraph.

    >>> Message("password_reset", "ada@example.com", "Your new password", ("Choose it here:", "…"), "https://…")
    """

    kind: str
    to: str
    subject: str
    paragraphs: tuple[str, ...] = field(repr=False)
    link: str | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        first, *others = self.paragraphs
        return "\n\n".join([first, *([self.link] if self.link else []), *others]) + "\n"

    @property
    def html(self) -> str:
        first, *others = (f"<p>{html.escape(paragraph)}</p>" for paragraph in self.paragraphs)
        linked = []
        if self.link:
            address = html.escape(self.link)
            linked = [f'<p><a href="{address}">{address}</a></p>']
        body = "\n".join([first, *linked, *others])
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(self.subject)}</title>'
            f"</head>\n<body>\n{body}\n</body>\n</html>\n"
        )


def compose(message: Message, sender: str) -> EmailMessage:
    """The e-mail as RFC 5322 has it. Raises `ValueError` for an address that is none, or a header of two lines."""
    to, from_ = mailbox(message.to), mailbox(sender)
    written = EmailMessage(policy=SMTP if f"{to}{from_}".isascii() else SMTPUTF8)
    written["From"] = Address(_SENDER_NAME, addr_spec=from_)
    written["To"] = Address(addr_spec=to)
    written["Subject"] = message.subject
    written["Date"] = format_datetime(utc_now())
    written["Message-ID"] = make_msgid(domain=from_.rpartition("@")[2])
    # RFC 3834, 5: nobody's holiday notice answers it.
    written["Auto-Submitted"] = "auto-generated"
    written.set_content(message.text)
    written.add_alternative(message.html, subtype="html")
    return written


def mailbox(address: str) -> str:
    """The address as SMTP takes it: its domain in ASCII, and the whole wherever it can be. Raises `ValueError`."""
    try:
        known = validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        raise ValueError(f"not an e-mail address: {error}") from None
    return known.ascii_email or f"{known.local_part}@{known.ascii_domain}"
