"""What a feature needs to write to people: who sends at once, who sends later, and where links lead."""

from dataclasses import dataclass

from tidegate.mail.links import Links
from tidegate.mail.mailer import Mailer
from tidegate.mail.message import Message
from tidegate.mail.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Post:
    """The post of a process. `outbox` is for what nobody waits for.

    >>> post.require_ready()
    >>> await post.send(Message("invitation", …))
    """

    mailer: Mailer
    outbox: Outbox
    links: Links

    def require_ready(self) -> None:
        """Raises `MailRefused`, naming the setting, where no e-mail with a link can be sent."""
        self.mailer.require_ready()
        self.links.require_ready()

    async def send(self, message: Message) -> None:
        """Sends at once. Raises `Unavailable`. Not inside a database transaction."""
        await self.mailer.send(message)
