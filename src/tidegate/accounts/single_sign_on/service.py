"""Single sign-on: from a browser that is sent to the provider to a sign-in like any other.

Invariants:
- The gateway keeps nothing of a log-in under way: its browser does, sealed, for ten minutes. Any worker finishes it.
- An answer is looked at only in the browser that began the log-in (`state`), and believed only of that log-in
  (`nonce`, PKCE) and from that provider (`iss`).
- Nobody is signed in but by a verified ID token, and no session of the database is held while the provider is asked.
- Every refusal is in the audit trail with its reason.
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidegate.accounts.sign_ins.refresh_tokens import hash_of
from tidegate.accounts.sign_ins.service import Client, IssuedTokens, SignIns
from tidegate.accounts.single_sign_on.linking import admit
from tidegate.accounts.single_sign_on.pending import LIFETIME_S, PendingLogIn, local_path
from tidegate.accounts.single_sign_on.people import person_of
from tidegate.accounts.single_sign_on.refusals import Refused
from tidegate.audit.trail import Event, Subject, write
from tidegate.errors import AuthenticationError, InvalidRequest, Unavailable
from tidegate.limits.service import Changed, nothing_changed
from tidegate.settings.groups import SingleSignOnSettings
from tidegate.storage.database import Database

if TYPE_CHECKING:
    # What they stand on takes a tenth of a second to import, where single sign-on is on.
    from tidegate.accounts.single_sign_on.provider import Provider
    from tidegate.accounts.single_sign_on.seals import Seals


@dataclass(frozen=True, slots=True)
class OpenedProvider:
    """A process's side of single sign-on. `redirect_uri` is None where no setting says what this gateway is called.

    `refused_by_provider` says what an `error` in the provider's answer means.
    """

    settings: SingleSignOnSettings
    provider: "Provider"
    seals: "Seals"
    redirect_uri: str | None
    refused_by_provider: Callable[[str], Exception]


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """What a browser brings back from the provider (RFC 6749, 4.1.2; RFC 9207, 2)."""

    state: str | None = field(default=None, repr=False)
    code: str | None = field(default=None, repr=False)
    error: str | None = None
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a browser is sent, and what it keeps until it comes back."""

    url: str = field(repr=False)
    sealed: str = field(repr=False)


class SingleSignOn:
    """Log-ins by the provider. `changed` is awaited with a user's id after a sign-in of theirs ended.

    >>> begun = await single_sign_on.begin("/usage")
    >>> pending = await single_sign_on.recognise(answer, sealed, client)
    >>> issued = await single_sign_on.finish(answer, pending, client)
    """

    def __init__(
        self,
        opened: OpenedProvider,
        database: Database,
        sign_ins: SignIns,
        *,
        changed: Changed = nothing_changed,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._opened = opened
        self._database = database
        self._sign_ins = sign_ins
        self._changed = changed
        self._clock = clock

    async def begin(self, wanted_path: str, refresh_token: str | None = None) -> Begun:
        """`refresh_token` is of the sign-in that this browser has, which ends where another begins.

        Raises `Unavailable`, `UpstreamError` where the provider cannot be asked.
        """
        # The way back is another site's: cookies that are `SameSite=Strict` do not come along.
        before = hash_of(refresh_token) if refresh_token else None
        pending = PendingLogIn.begin(local_path(wanted_path), self._clock(), before.hex() if before else None)
        url = await self._opened.provider.authorization_url(pending, self._redirect_uri())
        return Begun(url, self._opened.seals.seal(pending))

    async def recognise(self, answer: ProviderAnswer, sealed: str | None, client: Client) -> PendingLogIn:
        """The log-in that this answer is of. Raises `InvalidRequest` where this browser began none, or another."""
        pending = self._opened.seals.open(sealed) if sealed else None
        if pending is None:
            refusal = Refused("no_log_in_under_way", InvalidRequest(_none_under_way()))
        elif not hmac.compare_digest((answer.state or "").encode(), pending.state.encode()):
            told = InvalidRequest("This answer is of another log-in than this browser's last: sign in again.")
            refusal = Refused("other_state", told)
        else:
            return pending
        await self._note(refusal, client)
        raise refusal.error

    async def finish(self, answer: ProviderAnswer, pending: PendingLogIn, client: Client) -> IssuedTokens:
        """The sign-in of whom the answer tells of.

        Raises `AuthenticationError`, `PermissionDenied` and `InvalidRequest` for whom is not let in, `Unavailable` and
        `UpstreamError` where the provider fails, `Conflict` where the account is being changed.
        """
        try:
            return await self._finished(answer, pending, client)
        except Refused as caught:
            await self._note(caught, client)
            raise caught.error from None

    async def _finished(self, answer: ProviderAnswer, pending: PendingLogIn, client: Client) -> IssuedTokens:
        opened = self._opened
        await opened.provider.require_own_answer(answer.issuer)
        if answer.error is not None:
            raise opened.refused_by_provider(answer.error)
        if not answer.code:
            told = InvalidRequest("The provider's answer has neither a code nor an error: sign in again.")
            raise Refused("refused_by_provider", told)
        claims = await opened.provider.identify(answer.code, pending, self._redirect_uri())
        person = person_of(claims, opened.provider.issuer, opened.settings)
        admitted = await admit(self._database, person, opened.settings.workspace, client)
        if admitted.has_changed:
            await self._changed(admitted.user.id)
        try:
            issued = await self._sign_ins.begin(admitted.user, client, "single_sign_on")
        except AuthenticationError as error:
            raise Refused("disabled", error, email=admitted.user.email) from None
        if pending.ends is not None:
            # Its tokens are overwritten in this browser: nobody could end it any more, and a thief of them could go on.
            await self._sign_ins.end_by_token_hash(bytes.fromhex(pending.ends), client)
        return issued

    def _redirect_uri(self) -> str:
        if self._opened.redirect_uri is None:
            raise Unavailable("The provider cannot be told where to lead back: set TIDEGATE_HTTP__PUBLIC_URL.")
        return self._opened.redirect_uri

    async def _note(self, refusal: Refused, client: Client) -> None:
        details: dict[str, Any] = {
            "method": "single_sign_on",
            "reason": refusal.reason,
            "issuer": self._opened.provider.issuer,
        }
        subject = Subject("user", name=refusal.email)
        event = Event("account.sign_in_refused", subject=subject, outcome="refused", details=details)
        await write(self._database, client.as_actor(), event)


def _none_under_way() -> str:
    return (
        f"This browser began no log-in here in the last {LIFETIME_S // 60} minutes: sign in again, at the address that "
        "TIDEGATE_HTTP__PUBLIC_URL names."
    )
