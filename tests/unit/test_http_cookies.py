"""Of a browser's cookies this gateway's own alone come in, so that no other's can be dear to read."""

import time

import pytest

from tests.support.edge import EdgeApp, call
from tidegate.http.cookies import with_own_cookies
from tidegate.settings import Settings

LONG = 60_000
# What the standard library's reader takes the square of the length for, before Python 3.11.10.
DEAR = {
    "backslashes": b'"' + b"\\" * LONG + b'"',
    "escaped quotes": b'"' + b'\\"' * (LONG // 2) + b'"',
    "octal": b'"' + b"\\101" * (LONG // 4) + b'"',
}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"tidegate_access=eyJ.a-b_c", b"tidegate_access=eyJ.a-b_c"),
        (b"__Host-tidegate_access=a; __Host-tidegate_refresh=tgr_b", None),
        (b'theme="d\\"ark"; tidegate_access=a;sessionid=1 ; __Host-tidegate_sso=s', None),
        (b"tidegate_access=", b"tidegate_access="),
        (b'tidegate_access="a"', b""),
        (b"tidegate_access=a\\", b""),
        (b"xtidegate_access=a; tidegate_=a; tidegate_ACCESS=a; Tidegate_access=a; tidegate_access", b""),
        (b";;; =; a", b""),
    ],
)
def test_our_own_cookies_are_kept_as_they_came(sent: bytes, kept: bytes | None) -> None:
    if kept is None:
        ours = [pair.strip() for pair in sent.split(b";") if b"tidegate_" in pair]
        kept = b"; ".join(ours)
    others = [(b"host", b"gateway"), (b"accept", b"*/*")]
    assert with_own_cookies([others[0], (b"cookie", sent), others[1]]) == [
        others[0],
        *([(b"cookie", kept)] if kept else []),
        others[1],
    ]


def test_each_of_several_headers_is_looked_at() -> None:
    sent = [(b"cookie", b"a=1"), (b"cookie", b"tidegate_access=a; b=2"), (b"cookie", b"tidegate_refresh=r")]
    assert with_own_cookies(sent) == [(b"cookie", b"tidegate_access=a"), (b"cookie", b"tidegate_refresh=r")]


@pytest.mark.parametrize("dear", DEAR.values(), ids=DEAR.keys())
@pytest.mark.parametrize("name", ["theme", "tidegate_access", "__Host-tidegate_refresh"])
async def test_no_cookie_holds_the_loop_up(dear: bytes, name: str) -> None:
    app = EdgeApp(Settings(environment="test"))
    began = time.process_time()
    # FastAPI reads the cookies of every request, whatever its route asks for.
    answer = await call(app, "GET", "/ok", headers=[(b"cookie", name.encode() + b"=" + dear)])
    assert answer.status == 200
    assert time.process_time() - began < 1
