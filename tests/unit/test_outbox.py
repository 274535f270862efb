"""E-mails that nobody waits for: tried some times, bounded, and let go of at the end."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from tests.unit.virtual_time import in_virtual_time, now
from tidegate.errors import MailRefused, Unavailable
from tidegate.mail.links import Links
from tidegate.mail.mailer import ConsoleMailer, NoMailer, SmtpMailer, mailer_of
from tidegate.mail.message import Message
from tidegate.mail.outbox import MOST_WAITING, Errand, Outbox
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings, MailSettings, ServerSettings

TOKEN = "tgm_" + "A" * 43
MESSAGE = Message("password_reset", "ada@example.com", "Hello", ("Hello.",), f"https://g.example/#token={TOKEN}")


class ScriptedMailer:
    """Raises its `failures` in turn, then takes what it is given. Stalls while `held` is set."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.taken: list[Message] = []
        self.tries = 0
        self.held = False

    def require_ready(self) -> None:
        return

    async def send(self, message: Message) -> None:
        self.tries += 1
        if self.held:
            await asyncio.Event().wait()
        if self.failures:
            raise self.failures.pop(0)
        self.taken.append(message)


async def test_what_fails_for_now_is_tried_again_and_written_once() -> None:
    written = 0

    async def write() -> Message:
        nonlocal written
        written += 1
        return MESSAGE

    mailer = ScriptedMailer(Unavailable("later"), OSError("down"))
    async with Outbox.running(mailer, pauses_s=(0, 0, 0)) as outbox:
        outbox.put(Errand("password_reset", write))
        await outbox.settled()
    assert (written, mailer.tries, mailer.taken, outbox.sent, outbox.dropped) == (1, 3, [MESSAGE], 1, 0)


async def test_what_cannot_be_sent_is_dropped_and_told_without_what_it_says(caplog: pytest.LogCaptureFixture) -> None:
    mailer = ScriptedMailer(*[Unavailable("The mail server is away.")] * 3)
    async with Outbox.running(mailer, pauses_s=(0, 0, 0)) as outbox:
        outbox.say(MESSAGE)
        await outbox.settled()
        assert (mailer.tries, outbox.dropped) == (3, 1)
        outbox.say(MESSAGE)
        await outbox.settled()
    assert mailer.taken == [MESSAGE]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "The mail server is away." in line
    assert "password_reset" in line
    assert "tgm_" not in line
    assert "ada" not in line


@in_virtual_time
async def test_others_pass_what_waits_to_be_tried_again() -> None:
    later = replace(MESSAGE, to="later@example.com")
    mailer = ScriptedMailer(Unavailable("later"), Unavailable("later"))
    sent_at: dict[str, float] = {}

    async def write(message: Message) -> Message:
        sent_at[message.to] = now()
        return message

    async with Outbox.running(mailer, pauses_s=(0, 2, 10)) as outbox:
        outbox.say(MESSAGE)
        await asyncio.sleep(1)
        # Both failures are MESSAGE's and the next one's first try: neither waits for the other's pause.
        outbox.put(Errand("password_reset", partial(write, later)))
        outbox.put(Errand("password_reset", partial(write, replace(MESSAGE, to="third@example.com"))))
        await asyncio.sleep(0.5)
        assert [message.to for message in mailer.taken] == ["third@example.com"]
        await outbox.settled()
        assert [message.to for message in mailer.taken] == ["third@example.com", MESSAGE.to, later.to]
        assert now() == pytest.approx(3)
    assert sent_at == {later.to: pytest.approx(1), "third@example.com": pytest.approx(1)}
    assert (outbox.sent, outbox.dropped, mailer.tries) == (3, 0, 5)


@in_virtual_time
async def test_what_waits_to_be_tried_again_counts_among_those_that_wait_and_ends_with_the_process() -> None:
    mailer = ScriptedMailer(*[Unavailable("later")] * MOST_WAITING)
    async with Outbox.running(mailer, pauses_s=(0, 3600)) as outbox:
        for _ in range(MOST_WAITING):
            outbox.say(MESSAGE)
        await asyncio.sleep(1)
        assert mailer.tries == MOST_WAITING
        outbox.say(MESSAGE)
        assert outbox.dropped == 1
    assert now() < 60
    assert outbox.dropped == outbox.put_in


async def test_what_is_refused_for_good_is_tried_once() -> None:
    mailer = ScriptedMailer(MailRefused("550"), MailRefused("550"))
    async with Outbox.running(mailer, pauses_s=(0, 0, 0)) as outbox:
        outbox.say(MESSAGE)
        await outbox.settled()
    assert (mailer.tries, outbox.dropped) == (1, 1)


async def test_an_errand_that_finds_nothing_to_say_sends_nothing() -> None:
    async def write() -> None:
        return None

    mailer = ScriptedMailer()
    async with Outbox.running(mailer) as outbox:
        outbox.put(Errand("password_reset", write))
        await outbox.settled()
    assert (mailer.tries, outbox.sent, outbox.dropped) == (0, 0, 0)


async def test_the_queue_is_bounded_and_what_waits_at_the_end_is_let_go_of() -> None:
    mailer = ScriptedMailer()
    mailer.held = True
    async with asyncio.timeout(60):
        async with Outbox.running(mailer, pauses_s=(0,)) as outbox:
            for _ in range(MOST_WAITING + 10):
                outbox.say(MESSAGE)
            assert (outbox.put_in, outbox.dropped) == (MOST_WAITING + 10, 10)
    assert outbox.sent == 0
    assert outbox.dropped == outbox.put_in


async def test_what_was_put_last_is_still_sent_when_the_process_ends() -> None:
    mailer = ScriptedMailer()
    async with Outbox.running(mailer, pauses_s=(0,)) as outbox:
        outbox.say(MESSAGE)
    assert mailer.taken == [MESSAGE]


def _settings(environment: str, **more: object) -> Settings:
    return Settings.model_validate({"environment": environment, **more})


def test_who_sends_is_said_by_the_settings() -> None:
    smtp = MailSettings(smtp_host="mail.example.com", sender="tidegate@example.com")
    assert isinstance(mailer_of(_settings("production", mail=smtp)), SmtpMailer)
    assert isinstance(mailer_of(_settings("development", mail=smtp)), SmtpMailer)
    assert isinstance(mailer_of(_settings("development")), ConsoleMailer)
    assert isinstance(mailer_of(_settings("test")), ConsoleMailer)
    assert isinstance(mailer_of(_settings("production")), NoMailer)


async def test_a_developer_reads_the_link_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    await ConsoleMailer().send(MESSAGE)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "ada@example.com" in printed.err
    assert f"\nhttps://g.example/#token={TOKEN}\n" in printed.err


async def test_production_without_a_mail_server_shows_nothing_and_names_the_setting(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with Outbox.running(NoMailer(), pauses_s=(0, 0, 0)) as outbox:
        outbox.say(MESSAGE)
        await outbox.settled()
    assert capsys.readouterr() == ("", "")
    assert "TIDEGATE_MAIL__SMTP_HOST" in caplog.text
    assert "tgm_" not in caplog.text
    with pytest.raises(Unavailable, match="TIDEGATE_MAIL__SMTP_HOST"):
        NoMailer().require_ready()


@pytest.mark.parametrize(
    ("server", "base"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 9000}, "http://localhost:9000"),
        ({"host": "::", "port": 9000}, "http://localhost:9000"),
        ({"host": "::1"}, "http://[::1]:8000"),
    ],
)
def test_a_developer_s_links_lead_to_their_own_server(server: dict[str, object], base: str) -> None:
    links = Links(_settings("development", server=ServerSettings.model_validate(server)))
    assert links.to("invitation", TOKEN) == f"{base}/invitation#token={TOKEN}"


def test_links_lead_to_the_public_address_and_a_setting_is_named_where_there_is_none() -> None:
    public = HttpSettings(public_url="https://gateway.example.com")
    assert Links(_settings("production", http=public)).to("reset-password", TOKEN) == (
        f"https://gateway.example.com/reset-password#token={TOKEN}"
    )
    for settings in (_settings("production"), _settings("development", server=ServerSettings(port=0))):
        with pytest.raises(Unavailable, match="TIDEGATE_HTTP__PUBLIC_URL"):
            Links(settings).to("invitation", TOKEN)


def test_no_token_is_in_a_message_s_repr() -> None:
    assert "tgm_" not in repr(MESSAGE)
    assert "tgm_" not in repr(Errand("password_reset", _nothing))


async def _nothing() -> None:
    return None
