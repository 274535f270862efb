"""Links in e-mails. A token stands in the fragment, which no browser sends: it is in no log and no Referer."""

from typing import Final, Literal

from tidegate.errors import MailRefused
from tidegate.settings import Settings

Page = Literal["invitation", "reset-password", "confirm-email"]

_ANY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - recognised, not listened on


class Links:
    """Where people are sent.

    >>> Links(settings).to("invitation", token)
    'https://gateway.example.com/invitation#token=tgm_…'
    """

    def __init__(self, settings: Settings) -> None:
        self._base = settings.http.public_url or _own_address(settings)

    @property
    def base(self) -> str | None:
        """This gateway as people open it; None where no setting says it."""
        return self._base

    def require_ready(self) -> None:
        """Raises `MailRefused` where nothing says what this gateway is called."""
        if self._base is None:
            raise MailRefused("No link to this gateway can be sent: set TIDEGATE_HTTP__PUBLIC_URL.")

    def to(self, page: Page, token: str) -> str:
        """Raises `MailRefused` as `require_ready` does."""
        self.require_ready()
        return f"{self._base}/{page}#token={token}"


def _own_address(settings: Settings) -> str | None:
    """Where a developer's own server listens, None where only the server knows (port 0), and in production.

    Never the Host header: who sends one would choose where others' tokens go.
    """
    if settings.in_production or settings.server.port == 0:
        return None
    host = settings.server.host
    if host in _ANY_ADDRESS:
        host = "localhost"
    return f"{settings.server.scheme}://{f'[{host}]' if ':' in host else host}:{settings.server.port}"
