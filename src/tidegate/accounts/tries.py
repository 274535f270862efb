"""How often a sensitive route may be tried: by the account or token that a request names, and by its client's address.

Invariants:
- A try counts before anything is looked up or hashed, however it ends, and whether or not there is such an account. So
  a flood costs no password hashing, and a refusal says nothing of who exists.
- Both counters are judged in one step of the gate's store, in the deployment's tag: all workers share them, and a try
  that one of them refuses counts in neither.
- Counters are named by a hash under a secret of the deployment: no e-mail, no token and no address is in a store. They
  are gone when their window is.

- Whoever guesses an account keeps nobody out of it who logs in from a browser that is known for it.

What others did with an account is nobody's to know, so an answer tells of its limit only where that one refuses.
"""

import hashlib
import hmac
import ipaddress
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tidegate.admission.desk import Desk
from tidegate.admission.headers import rate_headers
from tidegate.admission.store import BUCKETS, Asked, Check, Reply, Spent
from tidegate.errors import RateLimitExceeded
from tidegate.storage.redis import DEPLOYMENT_TAG

SensitiveName = Literal[
    "login",
    "refresh",
    "logout",
    "forgot",
    "reset",
    "accept",
    "confirm-email",
    "change-password",
    "change-email",
    "second-factor",
    "prove-again",
    "invite",
    "sso-login",
    "sso-callback",
]

WINDOW_S: Final = 900
BY_USER: Final = "user_id"
# What one customer of a provider has at least (RFC 6177, 2): its single addresses are as many as anybody wants.
_IPV6_PREFIX: Final = 64


@dataclass(frozen=True, slots=True)
class Most:
    """The most tries in 15 minutes. `account` is the field of the body that names whom they are counted by beside the
    address, and `kind` what that is; without one they are counted by the address alone. `BY_USER` is no field: it is
    who is signed in. Where there is `by_browser`, tries from a browser that is known for the account are counted by
    both, and not among everybody's; and all of its known browsers' together.
    """

    account: str | None = None
    by_account: int = 0
    by_address: int = 0
    kind: Literal["account", "token"] = "account"
    by_browser: int = 0
    by_known_browsers: int = 0


# A refresh token cannot be guessed, and an office behind one address refreshes for all its people: what is held off is
# a flood of look-ups.
SENSITIVE: Final[Mapping[SensitiveName, Most]] = {
    "login": Most("email", by_account=10, by_address=30, by_browser=10, by_known_browsers=30),
    "refresh": Most("refresh_token", by_account=30, by_address=300, kind="token"),
    "logout": Most(by_address=300),
    # Each has an e-mail sent to whom the caller names.
    "forgot": Most("email", by_account=5, by_address=20),
    "reset": Most("token", by_account=10, by_address=30, kind="token"),
    "accept": Most("token", by_account=10, by_address=30, kind="token"),
    "confirm-email": Most("token", by_account=10, by_address=30, kind="token"),
    # Their current password is what could be guessed.
    "change-password": Most(BY_USER, by_account=10, by_address=30),
    "change-email": Most(BY_USER, by_account=5, by_address=20),
    # Their password and their codes are.
    "second-factor": Most(BY_USER, by_account=10, by_address=30),
    "prove-again": Most(BY_USER, by_account=10, by_address=30),
    # By who invites: each is an e-mail to an address of their choice.
    "invite": Most("caller_id", by_account=100, by_address=100),
    # Nothing can be guessed, and an office behind one address comes in at nine: what is held off is a flood of calls of
    # the provider.
    "sso-login": Most(by_address=300),
    "sso-callback": Most(by_address=300),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Whose try it is: the account or token as the request writes it, and the client's address where it is known.

    Who names no account (a page without its cookie) is counted by the address alone: all of them are not one account.
    `browser` is the name of one that is known for this account.
    """

    account: str | None
    address: str | None
    browser: str | None = None


class Tries:
    """Counts tries for one worker. `secret` is the same in every worker.

    >>> headers = await Tries(admission.desk, keyrings.peppers.current).count("login", Source(email, address))
    """

    def __init__(self, desk: Desk, secret: bytes) -> None:
        self._desk = desk
        self._secret = secret

    async def count(self, name: SensitiveName, source: Source) -> dict[str, str]:
        """Counts one try. Returns the headers that tell of its limit by address.

        Raises `RateLimitExceeded`, and `Unavailable` where no store can judge and the settings deny then.
        """
        most = SENSITIVE[name]
        by_address = f"{name}-address"
        counted = [*_of_account(name, most, source), (by_address, network_of(source.address), most.by_address)]
        labels = [label for label, _, _ in counted]
        checks = [self._check(*each) for each in counted]
        entry = secrets.token_hex(16)
        reply = await self._desk.take(DEPLOYMENT_TAG, Asked(entry, tuple(checks)))
        if reply.said != "taken":
            raise _refusal(labels[reply.at], checks[reply.at], reply)
        # Counted, and not undone: nothing is held any longer.
        self._desk.release(DEPLOYMENT_TAG, entry, Spent())
        # Nothing is known of them where the mode lets all in.
        if not reply.used:
            return {}
        amount = checks[-1].amount
        return rate_headers(by_address, amount, amount - reply.used[-1], WINDOW_S, WINDOW_S)

    def _check(self, label: str, subject: str, amount: int) -> Check:
        digest = hmac.new(self._secret, f"tries:{label}:{subject}".encode(), hashlib.sha256).hexdigest()
        return Check(f"{label}:{digest}", "sliding", "requests", amount, 1, width_s=WINDOW_S // BUCKETS)


def _of_account(name: SensitiveName, most: Most, source: Source) -> list[tuple[str, str, int]]:
    """What a try of an account counts in: label, subject and the most."""
    if most.account is None or source.account is None:
        return []
    account = source.account.strip().lower()
    if source.browser is None or not most.by_browser:
        return [(f"{name}-{most.kind}", account, most.by_account)]
    # A browser's name holds no line's end. The second bounds who logged in often while they still could.
    return [
        (f"{name}-browser", f"{source.browser}\n{account}", most.by_browser),
        (f"{name}-known-{most.kind}", account, most.by_known_browsers),
    ]


def network_of(address: str | None) -> str:
    """What is counted as one address: an IPv4 address, or an IPv6 network of 64 bits.

    What is no address is counted as it is written, and all without any as one.

    >>> network_of("2001:db8::1:2"), network_of("::ffff:192.0.2.7")
    ('2001:db8::/64', '192.0.2.7')
    """
    try:
        known = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if known.version == 4:
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(known), _IPV6_PREFIX), strict=False))


def _refusal(label: str, check: Check, reply: Reply) -> RateLimitExceeded:
    retry_s = math.ceil(reply.retry_ms / 1000)
    what = label.rpartition("-")[2]
    return RateLimitExceeded(
        f"Too many tries: {check.amount} in {WINDOW_S // 60} minutes for one {what}. Try again in {retry_s} s.",
        headers={
            "Retry-After": str(retry_s),
            "retry-after-ms": str(reply.retry_ms),
            **rate_headers(label, check.amount, 0, WINDOW_S, retry_s),
        },
    )
