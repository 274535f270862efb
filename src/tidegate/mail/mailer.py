"""Who sends e-mails: an SMTP server, in development the console, or nobody.

A mailer sends at once and says whether it could. What nobody waits for goes by `outbox`.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from typing import Final, Protocol

import aiosmtplib

from tidegate.errors import MailRefused, Unavailable
from tidegate.mail.message import Message, compose
from tidegate.settings import Settings
from tidegate.settings.groups import MailSettings
from tidegate.tls import client_context

_GOODBYE_WITHIN_S: Final = 1.0
_RULE: Final = "-" * 72
_NO_SERVER: Final = "No e-mail can be sent: set TIDEGATE_MAIL__SMTP_HOST and TIDEGATE_MAIL__SENDER."


class Mailer(Protocol):
    """Sends e-mails. Never called inside a database transaction."""

    def require_ready(self) -> None:
        """Raises `MailRefused` where no e-mail can be sent as the settings are."""
        ...

    async def send(self, message: Message) -> None:
        """Returns once it was taken. Raises `MailRefused` where it never will be, else `Unavailable`."""
        ...


def mailer_of(settings: Settings) -> Mailer:
    """The mailer that these settings ask for."""
    if settings.mail.smtp_host is not None:
        return SmtpMailer(settings.mail)
    return NoMailer() if settings.in_production else ConsoleMailer()


class SmtpMailer:
    """Hands e-mails to an SMTP server, each by a connection of its own, within `timeout_s` altogether.

    `tls_context` stands for the system's certificate authorities.
    """

    def __init__(self, settings: MailSettings, *, tls_context: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._tls_context = tls_context

    def require_ready(self) -> None:
        return

    async def send(self, message: Message) -> None:
        settings = self._settings
        assert settings.sender is not None
        try:
            composed = compose(message, settings.sender)
        except ValueError:
            raise MailRefused("The e-mail could not be written: its address or its subject is none.") from None
        if self._tls_context is None and settings.smtp_security != "none":
            self._tls_context = await asyncio.to_thread(_context)
        client = self._client()
        try:
            async with asyncio.timeout(settings.timeout_s):
                await client.connect()
                await client.send_message(composed)
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _answered([refused.code for refused in error.recipients]) from None
        except aiosmtplib.SMTPResponseException as error:
            raise _answered([error.code]) from None
        # Its TLS, its network, its silence, a feature that it lacks.
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise Unavailable(
                f"The mail server did not take the e-mail ({_reason(error)}): check TIDEGATE_MAIL__SMTP_HOST, "
                "SMTP_PORT and SMTP_SECURITY, then send it again."
            ) from None
        else:
            # Taken: however the goodbye ends, it must not be sent twice.
            with contextlib.suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_WITHIN_S):
                    await client.quit()
        finally:
            client.close()

    def _client(self) -> aiosmtplib.SMTP:
        settings = self._settings
        return aiosmtplib.SMTP(
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            # Else it would ask the resolver.
            local_hostname=socket.gethostname() or "localhost",
            username=settings.smtp_username,
            password=None if settings.smtp_password is None else settings.smtp_password.get_secret_value(),
            timeout=settings.timeout_s,
            use_tls=settings.smtp_security == "tls",
            start_tls=settings.smtp_security == "starttls",
            validate_certs=True,
            tls_context=self._tls_context,
        )


class ConsoleMailer:
    """Shows e-mails on standard error, so that a developer can paste their links. Never in production."""

    def require_ready(self) -> None:
        return

    async def send(self, message: Message) -> None:
        lines = [_RULE, f"E-mail to {message.to}: {message.subject}", "", message.text.rstrip(), _RULE, ""]
        # A terminal that is held up must not hold up the loop.
        await asyncio.to_thread(_show, "\n".join(lines))


class NoMailer:
    """Production without an SMTP server: nothing is sent, and nothing of it is shown."""

    def require_ready(self) -> None:
        raise MailRefused(_NO_SERVER)

    async def send(self, message: Message) -> None:
        del message
        raise MailRefused(_NO_SERVER)


def _context() -> ssl.SSLContext:
    context = client_context()
    # A mail server of one's own is often known by `SSL_CERT_FILE` alone.
    context.load_default_certs()
    return context


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _answered(codes: list[int]) -> Unavailable:
    """What a server's answer means: 5 in front is for good (RFC 5321, 4.2.1)."""
    said = f"The mail server refused the e-mail with {codes[0]}"
    if all(500 <= code < 600 for code in codes):
        return MailRefused(f"{said}: check its address, and who may send by TIDEGATE_MAIL__SMTP_HOST.")
    return Unavailable(f"{said}, for now: send it again later.")


def _reason(error: Exception) -> str:
    """Why, in a word: what a server or a resolver said may hold anything."""
    if isinstance(error, ssl.SSLCertVerificationError) or isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return "its certificate is not trusted here"
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return "TLS failed"
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
