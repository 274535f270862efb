"""Where a browser is sent and what is linked to: never where a caller says.

Every route that is read is asked with every name by which servers are told of a place to go on to.
"""

import itertools
import re
from typing import Final
from urllib.parse import urlsplit

from tests.security.attacked import PUBLIC_URL, Attacked
from tests.security.routes import routes
from tests.support.smtp import MailServer
from tests.support.waiting import eventually

EVIL: Final = "evil.example"
NAMES: Final = (
    "next",
    "url",
    "redirect",
    "redirect_uri",
    "return_to",
    "continue",
    "dest",
    "state",
    "RelayState",
    "iss",
)
PLACES: Final = (
    f"https://{EVIL}/",
    f"//{EVIL}/",
    f"/\\{EVIL}/",
    f"\\\\{EVIL}",
    f"https:{EVIL}",
    f"/%2f{EVIL}",
    f"/\t/{EVIL}",
    f"///{EVIL}",
    f"https://gateway.example.com@{EVIL}/",
    f"https://gateway.example.com.{EVIL}/",
    f"javascript:fetch('//{EVIL}')",
    f"data:text/html,<script src=//{EVIL}></script>",
    f"/x\r\nLocation: https://{EVIL}/",
    f"/#//{EVIL}",
)
HOSTS: Final = (
    {"Host": EVIL},
    {"X-Forwarded-Host": EVIL},
    {"X-Forwarded-Proto": "javascript", "X-Forwarded-Host": EVIL},
    {"Forwarded": f"host={EVIL};proto=https"},
    {"X-Original-Host": EVIL, "X-Host": EVIL},
    {"Referer": f"https://{EVIL}/", "Origin": f"https://{EVIL}"},
)


def leads_away(location: str) -> bool:
    """Whether a browser would leave this gateway, and what it is set up with, by this."""
    # As browsers read it: backslashes are slashes, and control characters are nothing (WHATWG URL, 4.4).
    read = re.sub(r"[\x00-\x20]", "", location).replace("\\", "/")
    parts = urlsplit(read)
    return read.startswith("//") or parts.scheme not in ("", "http", "https") or EVIL in (parts.netloc or "")


async def test_no_route_sends_a_browser_where_its_caller_says(attacked: Attacked) -> None:
    reading = [route for route in routes() if route.method == "GET"]
    assert len(reading) > 25
    sent = 0
    for route in reading:
        # A route that takes no other parameters than its own is asked by each of those.
        own = [(one.name,) for one in route.of("query") if one.is_text]
        # All names at once are refused by a route that takes none of them, whatever they say.
        asked_for = [(NAMES, place) for place in PLACES[::4]] + list(itertools.product(own, PLACES))
        for asked, place in asked_for:
            params = dict.fromkeys(asked, place)
            answer = await attacked.call("GET", route.url(), params=params)
            location = answer.headers.get("location")
            assert location is None or not leads_away(location), f"{route} {params}: {location}"
            assert "refresh" not in answer.headers, route
            if answer.headers.get("content-type", "").startswith("text/html"):
                assert EVIL not in answer.text, f"{route} {params} says it in a page"
            sent += 1
    assert sent > 400


async def test_no_redirect_is_built_from_a_host_that_a_caller_names(attacked: Attacked) -> None:
    for route in routes():
        asked = [(route.url(), headers) for headers in HOSTS]
        # As it would come from a client that was told `http://evil.example/…`, and with a slash too many.
        asked += [
            (path, HOSTS[0]) for path in (route.url() + "/", f"/{EVIL}/..{route.url()}", f"///{EVIL}{route.url()}")
        ]
        for path, headers in asked:
            answer = await attacked.call(route.method, path, headers=headers)
            location = answer.headers.get("location")
            assert location is None or not leads_away(location), f"{route} {headers}: {location}"
            linked = " ".join(answer.headers.get(name, "") for name in ("link", "content-location", "refresh"))
            assert EVIL not in linked, f"{route} {headers}"


async def test_links_in_e_mails_lead_to_the_gateway_whatever_host_asked(attacked: Attacked, mail: MailServer) -> None:
    for headers, name in zip(HOSTS, itertools.cycle(("member", "other", "stranger", "victim"))):
        mail.received.clear()
        told = {"email": f"{name}@example.com"}
        assert (await attacked.call("POST", "/auth/password/forgot", json=told, headers=headers)).status_code == 202
        invited = await attacked.call(
            "POST", "/api/invitations", by="admin", json={"email": "new@example.com"}, headers=headers
        )
        assert invited.status_code == 201
        await eventually(lambda: len(mail.received) == 2)
        for received in mail.received:
            text = "".join(str(part.get_content()) for part in received.message.walk() if not part.is_multipart())
            links = re.findall(r"https?://[^\s\"'<>]+", text)
            assert links
            assert all(link.startswith(f"{PUBLIC_URL}/") for link in links), links
            assert EVIL not in text
