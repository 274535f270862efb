"""Which web pages of other origins may call: exact origins from the settings, refusals in the envelope."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from tidegate.errors import envelope
from tidegate.http.errors import JSON, HttpError
from tidegate.telemetry.logging import bound_request_id

METHODS = ("GET", "POST", "PATCH", "PUT", "DELETE")
# What a page may read of an answer; the plain ones it may read anyway.
EXPOSED = (
    "X-Request-ID",
    "X-Tidegate-Entry-ID",
    "X-Tidegate-Model",
    "X-Tidegate-Upstream",
    "X-Tidegate-Cache",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)


class Cors(CORSMiddleware):
    """Starlette's, with a refused preflight in the envelope. Credentials are headers here, never cookies."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        # Vendors' clients send headers of their own (x-stainless-…), so the asked ones are granted, to these origins.
        super().__init__(
            app, allow_origins=tuple(origins), allow_methods=METHODS, allow_headers=("*",), expose_headers=EXPOSED
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        reason = bytes(response.body).decode()
        refusal = HttpError(response.status_code, f"{reason}: TIDEGATE_HTTP__CORS_ORIGINS names who may call.")
        headers = {
            name: value for name, value in response.headers.items() if name not in ("content-length", "content-type")
        }
        body = envelope(refusal, bound_request_id.get())
        return Response(body, status_code=response.status_code, headers=headers, media_type=JSON)
