"""The OpenID Connect provider: where it sends people, and who it says came back.

What it says of itself (its discovery document) and its keys are kept for some minutes. A key that is not known has the
keys fetched anew, at most once a minute, so neither a rotation nor a flood of made-up tokens does harm.

Sources: OpenID Connect Core 1.0, 3.1 (the code flow) and 5.3 (userinfo); Discovery 1.0, 4.3; RFC 7636 (PKCE);
RFC 9207 (`iss` in the answer); RFC 6749, 2.3.1 and 5.2 (the client's credentials, and how its request is refused).
"""

import base64
import hmac
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote_plus

import httpx2
import msgspec
from authlib.oauth2.rfc6749.parameters import (  # type: ignore[import-untyped]
    prepare_grant_uri,
    prepare_token_request,
)
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]
from authlib.oidc.discovery import get_well_known_url  # type: ignore[import-untyped]

from tidegate.accounts.single_sign_on.calls import Answer, Calls, Kept, failed
from tidegate.accounts.single_sign_on.id_tokens import Expected, ProviderKeys, key_id_of, verified_claims
from tidegate.accounts.single_sign_on.pending import PendingLogIn
from tidegate.accounts.single_sign_on.refusals import Refused
from tidegate.errors import AuthenticationError, InvalidRequest
from tidegate.settings.groups import SingleSignOnSettings
from tidegate.settings.hosts import host_of, is_loopback
from tidegate.telemetry.logging import get_logger
from tidegate.upstream.addresses import fault_of_url

log = get_logger(__name__)

KEPT_S: Final = 600.0
_FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}
_URL: Final = re.compile(r"https?://[!-~]{1,2000}")
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,64}")
_CREDENTIALS_REFUSED: Final = frozenset({"invalid_client", "unauthorized_client"})


class Metadata(msgspec.Struct, frozen=True):
    """What this gateway needs of a discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    authorization_response_iss_parameter_supported: bool = False


class Provider:
    """The provider of the settings, which name one. To be closed.

    >>> url = await provider.authorization_url(pending, redirect_uri)
    >>> claims = await provider.identify(code, pending, redirect_uri)
    """

    def __init__(
        self,
        calls: Calls,
        settings: SingleSignOnSettings,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        assert settings.issuer is not None
        assert settings.client_id is not None
        self.issuer = settings.issuer
        self.client_id = settings.client_id
        self._settings = settings
        self._calls = calls
        self._clock = clock
        self._metadata = Kept(self._discover, max_age_s=KEPT_S, clock=steady)
        self._keys = Kept(self._fetch_keys, max_age_s=KEPT_S, clock=steady)

    @classmethod
    def of(cls, client: httpx2.AsyncClient, settings: SingleSignOnSettings) -> "Provider":
        return cls(Calls(client), settings)

    async def aclose(self) -> None:
        """Ends what is being fetched, within a bound, cancelled or not."""
        # The keys first: they may be waiting for the metadata.
        await self._keys.aclose()
        await self._metadata.aclose()

    async def authorization_url(self, pending: PendingLogIn, redirect_uri: str) -> str:
        """Where a browser is sent to log in. Raises `Unavailable`, `UpstreamError`."""
        metadata = await self._metadata.get()
        url: str = prepare_grant_uri(
            metadata.authorization_endpoint,
            client_id=self.client_id,
            response_type="code",
            redirect_uri=redirect_uri,
            scope=" ".join(dict.fromkeys(("openid", *self._settings.scopes))),
            state=pending.state,
            nonce=pending.nonce,
            code_challenge=create_s256_code_challenge(pending.code_verifier),
            code_challenge_method="S256",
        )
        return url

    async def require_own_answer(self, issuer: str | None) -> None:
        """Raises `Refused` where the answer that a browser brings says that another provider gave it (a mix-up), or
        does not say it though this one always does. Raises `Unavailable`, `UpstreamError`.
        """
        if issuer is None:
            if not (await self._metadata.get()).authorization_response_iss_parameter_supported:
                return
        elif hmac.compare_digest(issuer.encode(), self.issuer.encode()):
            return
        raise Refused("other_issuer", InvalidRequest("Another provider gave this answer: sign in again.", param="iss"))

    async def identify(self, code: str, pending: PendingLogIn, redirect_uri: str) -> dict[str, Any]:
        """The claims of whom a code stands for: those of the ID token, and what userinfo adds to them.

        Raises `Refused` where code or token is not good, `Unavailable` and `UpstreamError` where the provider is not.
        """
        metadata = await self._metadata.get()
        id_token, access_token = await self._exchange(metadata, code, pending, redirect_uri)
        key_id = key_id_of(id_token)
        keys = await self._keys.get()
        if keys.lack(key_id):
            keys = await self._keys.anew()
        expected = Expected(self.issuer, self.client_id, pending.nonce, access_token)
        claims = verified_claims(id_token, keys, expected, now=self._clock())
        if metadata.userinfo_endpoint is None or access_token is None or not self._lacks(claims):
            return claims
        return _together(claims, await self._userinfo(metadata.userinfo_endpoint, access_token, claims["sub"]))

    def _lacks(self, claims: Mapping[str, Any]) -> bool:
        needed = ["email", "email_verified"]
        if self._settings.admin_groups or self._settings.member_groups:
            needed.append(self._settings.groups_claim)
        return any(claims.get(name) is None for name in needed)

    async def _discover(self) -> Metadata:
        url = get_well_known_url(self.issuer, external=True)
        self._require_safe(self.issuer, "its issuer")
        answer = await self._calls.send("GET", url, what="its discovery document")
        _require_ok(answer, "its discovery document")
        try:
            metadata = msgspec.convert(answer.body, Metadata)
        except msgspec.ValidationError as error:
            raise failed(f"has a discovery document that cannot be used ({error})") from None
        if metadata.issuer != self.issuer:
            raise failed(f"says that its issuer is {metadata.issuer[:256]!r}, and not the setting's")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
            if getattr(metadata, name) is not None:
                self._require_safe(getattr(metadata, name), name)
        return metadata

    def _require_safe(self, url: str, what: str) -> None:
        """By https; by http on this machine alone, and only where the issuer is by http there too."""
        fault = "is no URL" if _URL.fullmatch(url) is None or "#" in url else fault_of_url(url)
        is_open = url.startswith("http://") and not (is_loopback(host_of(url)) and self.issuer.startswith("http://"))
        if fault or is_open:
            raise failed(f"cannot be used: {what} {fault or 'must begin with https://'}")

    async def _fetch_keys(self) -> ProviderKeys:
        metadata = await self._metadata.get()
        answer = await self._calls.send("GET", metadata.jwks_uri, what="its keys")
        _require_ok(answer, "its keys")
        bits = self._settings.min_rsa_bits
        keys = ProviderKeys.of(answer.body, min_rsa_bits=bits)
        if keys.too_small:
            log.warning("single_sign_on_keys_too_small", keys=keys.too_small, min_rsa_bits=bits)
            if not keys.whole:
                told = "signs by RSA keys that are too small"
                raise failed(f"{told}, fewer than the {bits} bits of TIDEGATE_SINGLE_SIGN_ON__MIN_RSA_BITS")
        if not keys.whole:
            raise failed("has no key that signs ID tokens by RS, PS or ES")
        return keys

    async def _exchange(
        self, metadata: Metadata, code: str, pending: PendingLogIn, redirect_uri: str
    ) -> tuple[str, str | None]:
        """The ID token and the access token of a code."""
        public = {"client_id": self.client_id} if self._settings.client_secret is None else {}
        form = prepare_token_request(
            "authorization_code", redirect_uri=redirect_uri, code=code, code_verifier=pending.code_verifier, **public
        )
        headers = {**_FORM, **self._credentials()}
        answer = await self._calls.send(
            "POST", metadata.token_endpoint, what="a token", headers=headers, content=form.encode()
        )
        if answer.status != 200:
            raise _exchange_refused(answer)
        id_token, access_token = answer.body.get("id_token"), answer.body.get("access_token")
        if not isinstance(id_token, str):
            raise failed("answered without an ID token: is this an OpenID Connect provider")
        return id_token, access_token if isinstance(access_token, str) else None

    def _credentials(self) -> dict[str, str]:
        secret = self._settings.client_secret
        if secret is None:
            return {}
        pair = f"{quote_plus(self.client_id)}:{quote_plus(secret.get_secret_value())}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}

    async def _userinfo(self, url: str, access_token: str, subject: str) -> dict[str, Any]:
        if _URL.fullmatch(f"http://{access_token}") is None:
            raise failed("gave an access token that is none")
        headers = {"Authorization": f"Bearer {access_token}"}
        answer = await self._calls.send("GET", url, what="userinfo", headers=headers)
        _require_ok(answer, "userinfo")
        # Core, 5.3.2: or it tells of somebody else.
        if answer.body.get("sub") != subject:
            raise failed("told of somebody else when asked for userinfo")
        return answer.body


def refused_by_provider(error: str) -> Exception:
    """What `error` in a provider's answer means (RFC 6749, 4.1.2.1; Core, 3.1.2.6)."""
    code = _error_code(error)
    if code in ("server_error", "temporarily_unavailable"):
        return failed(f"has trouble of its own ({code}): try again, and else")
    if code in ("access_denied", "login_required", "interaction_required", "consent_required"):
        told = AuthenticationError(f"The single sign-on provider did not let you in ({code}): ask its administrators.")
        return Refused("refused_by_provider", told)
    return failed(f"did not take this gateway's request ({code})")


def _exchange_refused(answer: Answer) -> Exception:
    code = _error_code(answer.body.get("error"))
    log.warning("the single sign-on provider gave no token", status=answer.status, error=code)
    if code == "invalid_grant":
        told = AuthenticationError("The single sign-on provider does not take this log-in's code: sign in again.")
        return Refused("code_not_accepted", told)
    if code in _CREDENTIALS_REFUSED or answer.status == 401:
        return failed(
            "does not know this gateway: check TIDEGATE_SINGLE_SIGN_ON__CLIENT_ID and "
            f"TIDEGATE_SINGLE_SIGN_ON__CLIENT_SECRET ({code}), and"
        )
    return failed(f"answered {answer.status} ({code}) when asked for a token")


def _error_code(error: object) -> str:
    return error if isinstance(error, str) and _ERROR_CODE.fullmatch(error) else "no code that is known"


def _require_ok(answer: Answer, what: str) -> None:
    if answer.status != 200 or not answer.body:
        raise failed(f"answered {answer.status}, without what was asked for ({what})")


def _together(claims: Mapping[str, Any], userinfo: Mapping[str, Any]) -> dict[str, Any]:
    """The ID token's claims, and userinfo's where it has none. What userinfo verified is its own address alone."""
    whole = {**userinfo, **claims}
    if claims.get("email") not in (None, userinfo.get("email")):
        whole["email_verified"] = claims.get("email_verified")
    return whole
