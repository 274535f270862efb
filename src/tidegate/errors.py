"""The whole tree of errors, and what each is to a caller.

    TidegateError
      InvalidRequest            400 invalid_request            a field is wrong; `param` names it
        ContextLengthExceeded   400 context_length_exceeded
      AuthenticationError
        MissingCredentials      401 missing_credentials
        InvalidApiKey           401 invalid_api_key
        InvalidToken            401 invalid_token
        TokenExpired            401 token_expired
        SecondFactorRequired    401 second_factor_required     the password was right, and a code is missing
      PermissionDenied          403 permission_denied
        ModelNotAllowed         403 model_not_allowed
        ProofRequired           403 reauthentication_required  the sign-in is too old for this
      NotFound                  404 not_found
        ModelNotFound           404 model_not_found
      MethodNotAllowed          405 method_not_allowed
      RequestTimeout            408 request_timeout
      Conflict                  409 conflict
      RequestTooLarge           413 request_too_large
      ValidationFailed          422 validation_error           off /v1, with `errors`
      HeadersTooLarge           431 headers_too_large
      RateLimitExceeded         429 rate_limit_exceeded
        InsufficientQuota       429 insufficient_quota
          AnswerCut             429 insufficient_quota         in mid-answer
      InternalError             500 internal_error
      UpstreamError             502 upstream_error
      Overloaded                503 overloaded                 no slot before the deadline, or the queue is full
        Unavailable             503 unavailable                a dependency is down
          MailRefused           503 unavailable                an e-mail that cannot be sent, now or later
        Draining                503 draining
      UpstreamTimeout           504 upstream_timeout           which one, of which upstream
      UpstreamRefused           as the upstream said           its own 400, 404, 409, 413, 422 with its message

Features raise these; only this module and `http/` know HTTP statuses. A message is safe to show and says what to do.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

_TYPE_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class TidegateError(Exception):
    """An error that a caller is told of, in the one envelope. `headers` go with the answer."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def detail(self) -> dict[str, Any]:
        """The `error` member of the envelope."""
        return {
            "type": error_type(self.http_status),
            "code": self.http_code,
            "message": self.message,
            "param": self.param,
        }

    @property
    def http_status(self) -> int:
        return self.status

    @property
    def http_code(self) -> str:
        return self.code


class InvalidRequest(TidegateError):
    status, code = 400, "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class AuthenticationError(TidegateError):
    status, code = 401, "invalid_token"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class MissingCredentials(AuthenticationError):
    code = "missing_credentials"


class InvalidApiKey(AuthenticationError):
    code = "invalid_api_key"


class InvalidToken(AuthenticationError):
    code = "invalid_token"


class TokenExpired(AuthenticationError):
    code = "token_expired"


class SecondFactorRequired(AuthenticationError):
    """A log-in by the right password of somebody who has a second factor: it is to be sent again with a `code`."""

    code = "second_factor_required"


class PermissionDenied(TidegateError):
    status, code = 403, "permission_denied"


class ModelNotAllowed(PermissionDenied):
    code = "model_not_allowed"


class ProofRequired(PermissionDenied):
    """It takes somebody who proved lately who they are, or does so with this request."""

    code = "reauthentication_required"


class NotFound(TidegateError):
    status, code = 404, "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(TidegateError):
    status, code = 405, "method_not_allowed"


class RequestTimeout(TidegateError):
    status, code = 408, "request_timeout"


class Conflict(TidegateError):
    status, code = 409, "conflict"


class RequestTooLarge(TidegateError):
    status, code = 413, "request_too_large"


class ValidationFailed(TidegateError):
    """What failed validation off /v1. `errors` is a list of `{"loc": […], "message": …}`."""

    status, code = 422, "validation_error"

    def __init__(self, message: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.errors = errors

    def detail(self) -> dict[str, Any]:
        return {**super().detail(), "errors": self.errors}


class HeadersTooLarge(TidegateError):
    status, code = 431, "headers_too_large"


class RateLimitExceeded(TidegateError):
    status, code = 429, "rate_limit_exceeded"


class InsufficientQuota(RateLimitExceeded):
    code = "insufficient_quota"


class AnswerCut(InsufficientQuota):
    """An answer that began, and was cut because its budget has no room for more of it."""


class InternalError(TidegateError):
    status, code = 500, "internal_error"


class UpstreamError(TidegateError):
    """The upstream failed or answered what was not asked for. `upstream` is its configured name.

    `reached` is false where it cannot have seen the request; `upstream_status` is the HTTP status that it answered.
    """

    status, code = 502, "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        upstream: str,
        reached: bool = True,
        upstream_status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, headers=headers)
        self.upstream = upstream
        self.reached = reached
        self.upstream_status = upstream_status


class UpstreamTimeout(UpstreamError):
    """`phase` is one of connect, write, headers, first_token, idle, total."""

    status, code = 504, "upstream_timeout"

    def __init__(self, phase: str, seconds: float, *, upstream: str) -> None:
        what = {
            "connect": "could not be connected to within",
            "write": "did not take the request within",
            "headers": "sent no response headers within",
            "first_token": "sent no first token within",
            "idle": "sent nothing more for",
            "total": "did not finish within",
        }[phase]
        super().__init__(
            f"{phase} timeout: the upstream {upstream!r} {what} {seconds:g} s.",
            upstream=upstream,
            reached=phase != "connect",
        )
        self.phase = phase


class UpstreamRefused(UpstreamError):
    """The upstream's own refusal of this request, passed on with its status, code and message."""

    def __init__(
        self, message: str, *, upstream: str, refused_status: int, refused_code: str | None, param: str | None
    ) -> None:
        super().__init__(message, upstream=upstream, upstream_status=refused_status)
        self.refused_status = refused_status
        self.refused_code = refused_code or "invalid_request"
        self.param = param

    @property
    def http_status(self) -> int:
        return self.refused_status

    @property
    def http_code(self) -> str:
        return self.refused_code


class Overloaded(TidegateError):
    status, code = 503, "overloaded"


class Unavailable(Overloaded):
    code = "unavailable"


class MailRefused(Unavailable):
    """An e-mail that is sent neither now nor later: its server refuses it, or a setting is missing."""


class Draining(Overloaded):
    code = "draining"

    def __init__(self, message: str) -> None:
        # Another server, or this one's successor, is there at once.
        super().__init__(message, headers={"Retry-After": "1"})


def error_type(status: int) -> str:
    """The envelope's `type` for an HTTP status; what is not listed goes by its class of hundred."""
    return _TYPE_BY_STATUS.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def envelope(error: TidegateError, request_id: str | None) -> bytes:
    """The one JSON body of every error of every route."""
    return orjson.dumps({"type": "error", "error": error.detail(), "request_id": request_id})
