"""What an upstream's answer without success is to the caller.

Its own 400, 404, 409, 413 and 422 are of the request: they pass on with their message. All others are of the upstream
or of the operator, and the caller sees a 502.
"""

import msgspec

from tidegate.errors import ContextLengthExceeded, UpstreamError, UpstreamRefused
from tidegate.upstream.echoed_key import without_key
from tidegate.upstream.provider import Answer

_PASSED_ON = frozenset({400, 404, 409, 413, 422})
_MOST_BYTES = 64 * 1024
_LONGEST_MESSAGE = 2000
_LONGEST_CODE = 64
_CONTEXT_CODES = frozenset({ContextLengthExceeded.code, "exceed_context_size_error"})


class _Detail(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    error: _Detail | str | None = None
    message: str | None = None
    # Not `Raw | None`: of such a union msgspec takes null alone.
    detail: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(_Body)


async def refusal_of(answer: Answer, upstream: str, *, key: str | None = None) -> UpstreamError:
    """The error to raise for an answer whose status is not 200. Reads at most 64 KiB of it.

    `key` is what the upstream was sent, which its words must not repeat.
    """
    body = await read_bounded(answer, upstream, _MOST_BYTES, complete=False)
    status = answer.status
    if status in (401, 403):
        return UpstreamError(
            f"The upstream {upstream!r} refused the gateway's credentials ({status}): its operator has to mend them.",
            upstream=upstream,
            upstream_status=status,
        )
    if status == 429:
        retry_after = answer.passed_headers.get("X-Tidegate-Upstream-retry-after", "")
        return UpstreamError(
            f"The upstream {upstream!r} limits the gateway's rate (429). Try again later.",
            upstream=upstream,
            upstream_status=status,
            # Seconds, or a date (RFC 9110, 10.2.3): other characters may be none that a header of ours can hold.
            headers={"Retry-After": retry_after} if retry_after and retry_after.isascii() else None,
        )
    detail = _detail(body)
    if status in _PASSED_ON and detail is not None:
        code = without_key(str(detail.code or detail.type or ""), key)[:_LONGEST_CODE] or None
        is_context = code in _CONTEXT_CODES or detail.type in _CONTEXT_CODES
        return UpstreamRefused(
            without_key(detail.message or f"The upstream refused the request ({status}).", key)[:_LONGEST_MESSAGE],
            upstream=upstream,
            refused_status=status,
            refused_code=ContextLengthExceeded.code if is_context else _code(status, code),
            param=without_key(detail.param, key)[:_LONGEST_MESSAGE] if detail.param else None,
        )
    return UpstreamError(
        f"The upstream {upstream!r} answered with status {status}.", upstream=upstream, upstream_status=status
    )


async def read_bounded(answer: Answer, upstream: str, most_bytes: int, *, complete: bool = True) -> bytes:
    """An answer's body. Past `most_bytes` it is an error, or, where it need not be complete, cut there."""
    parts = []
    size = 0
    async for data in answer:
        parts.append(data)
        size += len(data)
        if size > most_bytes:
            if complete:
                raise UpstreamError(f"The upstream {upstream!r} sent more than {most_bytes} bytes.", upstream=upstream)
            break
    return b"".join(parts)


def is_about_usage_request(refusal: UpstreamError) -> bool:
    """Whether an upstream refused that it was asked for usage, in the words that such upstreams use."""
    text = f"{refusal.message} {refusal.param or ''}".lower()
    return isinstance(refusal, UpstreamRefused) and ("stream_options" in text or "include_usage" in text)


def _detail(body: bytes) -> _Detail | None:
    """The error in a body of the OpenAI form, or of FastAPI's (`detail`); None where it has neither."""
    try:
        decoded = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(decoded.error, _Detail):
        return decoded.error
    if isinstance(decoded.error, str):
        return _Detail(message=decoded.error)
    if decoded.message is not None:
        return _Detail(message=decoded.message)
    detail = bytes(decoded.detail)
    if detail in (b"", b"null"):
        return None
    return _Detail(message=_text(detail))


def _text(written: bytes) -> str:
    """A JSON string as what it says, any other JSON as it is written."""
    try:
        return msgspec.json.decode(written, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return written.decode("utf-8", "replace")


def _code(status: int, code: str | None) -> str:
    by_status = {404: "not_found", 409: "conflict", 413: "request_too_large"}
    return code or by_status.get(status, "invalid_request")
