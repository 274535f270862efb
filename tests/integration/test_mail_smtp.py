"""E-mails by a real SMTP server on loopback: taken, refused, stalled, dropped, and never twice."""

import asyncio
import ssl
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.smtp import CERTIFICATE, MAIL_PASSWORD, USERNAME, mail_server, raw_server
from tests.support.waiting import eventually
from tidegate.errors import MailRefused, Unavailable
from tidegate.mail.mailer import SmtpMailer
from tidegate.mail.message import Message
from tidegate.mail.outbox import Outbox
from tidegate.settings.groups import MailSettings

LINK = "https://gateway.example.com/reset-password#token=tgm_" + "A" * 43
MESSAGE = Message(
    "password_reset",
    "ada@example.com",
    "A new password: ключ",
    ("Choose <b>it</b> & here:", "“Once”, for 30 minutes. " + "word " * 60),
    LINK,
)


def _mailer(port: int, security: str = "none", *, trusts: bool = True, **more: Any) -> SmtpMailer:
    settings = MailSettings.model_validate(
        {"smtp_host": "localhost", "smtp_port": port, "smtp_security": security, "sender": "tidegate@example.com"}
        | more
    )
    context = ssl.create_default_context(cafile=str(CERTIFICATE)) if trusts else None
    return SmtpMailer(settings, tls_context=context)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
async def test_an_e_mail_arrives_with_two_parts_that_say_the_same(security: str) -> None:
    async with mail_server(security) as server:
        await _mailer(server.port, security).send(MESSAGE)
    (received,) = server.received
    assert received.is_encrypted is (security != "none")
    assert (received.sender, received.recipients) == ("tidegate@example.com", ["ada@example.com"])
    message = received.message
    assert message.defects == []
    assert (str(message["To"]), str(message["Subject"])) == ("ada@example.com", "A new password: ключ")
    assert str(message["From"]) == "Tidegate <tidegate@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Date"].datetime.tzinfo is not None
    assert str(message["Message-ID"]).endswith("@example.com>")
    assert max(map(len, received.raw.splitlines())) <= 998
    plain, page = message.iter_parts()
    assert [part.get_content_type() for part in (plain, page)] == ["text/plain", "text/html"]
    assert plain.defects == page.defects == []
    assert plain.get_content().replace("\r\n", "\n") == MESSAGE.text
    assert LINK in plain.get_content()
    read = _Page()
    read.feed(page.get_content())
    assert read.open == []
    assert [attributes["href"] for tag, attributes in read.tags if tag == "a"] == [LINK]
    # Nothing is fetched by who opens it, and nothing of what was said is markup.
    assert {tag for tag, _ in read.tags} == {"html", "head", "meta", "title", "body", "p", "a"}
    assert {name for _, attributes in read.tags for name in attributes} == {"lang", "charset", "href"}
    for paragraph in MESSAGE.paragraphs:
        assert paragraph in read.text


async def test_the_mail_server_s_name_and_password_are_given_where_it_asks() -> None:
    async with mail_server("starttls", asks_who=True) as server:
        given: dict[str, Any] = {"smtp_username": USERNAME, "smtp_password": SecretStr(MAIL_PASSWORD)}
        await _mailer(server.port, "starttls", **given).send(MESSAGE)
        assert server.received[0].username == USERNAME
        with pytest.raises(MailRefused) as refusal:
            await _mailer(server.port, "starttls", **given | {"smtp_password": SecretStr("wrong")}).send(MESSAGE)
    assert "535" in refusal.value.message
    assert "wrong" not in refusal.value.message
    assert len(server.received) == 1


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_a_certificate_that_is_not_trusted_gets_no_e_mail(security: str) -> None:
    async with mail_server(security) as server:
        with pytest.raises(Unavailable, match="certificate is not trusted"):
            await _mailer(server.port, security, trusts=False).send(MESSAGE)
    assert server.received == []


async def test_a_server_without_starttls_gets_no_e_mail_in_the_clear() -> None:
    async with mail_server("none") as server:
        with pytest.raises(Unavailable):
            await _mailer(server.port, "starttls").send(MESSAGE)
    assert server.received == []


@pytest.mark.parametrize(
    ("to", "subject"),
    [
        ("ada@example.com\r\nBcc: eve@example.com", "Hello"),
        ("ada@example.com, eve@example.com", "Hello"),
        ("ada@example.com>\nRCPT TO:<eve@example.com", "Hello"),
        ("ada", "Hello"),
        ("ada@example.com", "Hello\r\nBcc: eve@example.com"),
        ("ada@example.com", "Hello\nBcc: eve@example.com"),
    ],
)
async def test_nobody_writes_a_header_of_their_own(to: str, subject: str) -> None:
    async with mail_server() as server:
        with pytest.raises(MailRefused):
            await _mailer(server.port).send(Message("test", to, subject, ("Hello.",)))
    assert (server.tries, server.received) == (0, [])


async def test_what_is_said_ends_no_e_mail_early() -> None:
    said = "one\r\n.\r\nMAIL FROM:<eve@example.com>\r\n.dot"
    async with mail_server() as server:
        await _mailer(server.port).send(Message("test", "ada@example.com", "Hello", (said,)))
    (received,) = server.received
    (plain, _) = received.message.iter_parts()
    assert ".dot" in plain.get_content()
    assert "MAIL FROM" in plain.get_content()


async def test_a_domain_in_letters_of_its_own_is_written_as_dns_has_it() -> None:
    async with mail_server() as server:
        await _mailer(server.port).send(Message("test", "ada@bücher.example", "Hello", ("Hello.",)))
    assert server.received[0].recipients == ["ada@xn--bcher-kva.example"]


async def test_a_refusal_for_good_is_told_from_one_for_now() -> None:
    async with mail_server() as server:
        server.answers = ["550 no such user here: secret text", "451 later"]
        with pytest.raises(MailRefused) as for_good:
            await _mailer(server.port).send(MESSAGE)
        with pytest.raises(Unavailable) as for_now:
            await _mailer(server.port).send(MESSAGE)
        assert not isinstance(for_now.value, MailRefused)
    assert ("550" in for_good.value.message, "451" in for_now.value.message) == (True, True)
    assert "secret text" not in for_good.value.message


async def _stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _stall_after_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 localhost\r\n")
    while await reader.read(1024):
        writer.write(b"250-localhost\r\n")


async def _drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 localhost\r\n")
    await reader.readline()


@pytest.mark.parametrize("serve", [_stall, _stall_after_greeting])
async def test_a_server_that_stalls_is_left_in_time(serve: object) -> None:
    async with raw_server(serve) as port:  # type: ignore[arg-type]
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no answer in time"):
            await _mailer(port, timeout_s=0.2).send(MESSAGE)
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
async def test_a_server_that_drops_the_connection_is_unavailable(security: str) -> None:
    async with raw_server(_drop) as port:
        with pytest.raises(Unavailable):
            await _mailer(port, security).send(MESSAGE)


async def test_nobody_listening_is_unavailable() -> None:
    async with raw_server(_drop) as port:
        pass
    with pytest.raises(Unavailable, match="TIDEGATE_MAIL__SMTP_HOST"):
        await _mailer(port).send(MESSAGE)


async def test_an_e_mail_that_was_taken_is_not_sent_again_though_the_goodbye_fails() -> None:
    taken = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        writer.write(b"220 localhost\r\n")
        while line := await reader.readline():
            if line.startswith(b"DATA"):
                writer.write(b"354 go\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                taken += 1
                writer.write(b"250 taken\r\n")
            elif line.startswith(b"QUIT"):
                return
            else:
                writer.write(b"250 localhost\r\n")

    async with raw_server(serve) as port, Outbox.running(_mailer(port), pauses_s=(0, 0, 0)) as outbox:
        outbox.say(MESSAGE)
        await outbox.settled()
    assert (taken, outbox.sent, outbox.dropped) == (1, 1, 0)


async def test_the_outbox_tries_again_what_was_refused_for_now() -> None:
    async with mail_server() as server, Outbox.running(_mailer(server.port), pauses_s=(0, 0, 0)) as outbox:
        server.answers = ["451 later", "421 later"]
        outbox.say(MESSAGE)
        await eventually(lambda: server.received)
        server.answers = ["550 never"]
        outbox.say(MESSAGE)
        await outbox.settled()
    assert (len(server.received), server.tries, outbox.sent, outbox.dropped) == (1, 4, 1, 1)
