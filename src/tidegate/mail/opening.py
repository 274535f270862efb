"""The post of a process, opened and closed with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate.mail.links import Links
from tidegate.mail.mailer import mailer_of
from tidegate.mail.outbox import Outbox
from tidegate.mail.post import Post
from tidegate.settings import Settings


@asynccontextmanager
async def open_post(settings: Settings) -> AsyncIterator[Post]:
    """To be closed before the database: an errand may be looking something up."""
    mailer = mailer_of(settings)
    async with Outbox.running(mailer) as outbox:
        yield Post(mailer, outbox, Links(settings))
