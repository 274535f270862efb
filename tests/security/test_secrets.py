"""Secrets nowhere: a real server is used, misused and broken, and everything that it printed, answered or stored is
searched for every secret that it was given or made.

What is kept are hashes. A token or a key that was made is in the one answer that gives it.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.security.searching import drop_table, files_under, forms_of, found_in, keys_of, rows_of
from tests.support.behaviours import Answer, Completion, refusal
from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess, catalogue, free_port
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Exchange
from tidegate.auth.api_keys import generate_key

# Each is found in no other text; production takes all of them.
GIVEN = {
    "jwt": "Zx81Qm-jwtkey-Vb47Rt90Lk23Wp65Ns18HdUe36Ci79Mj",
    "pepper": "Yw72Kp-pepper-Gc58Mu31Fj94Eq06Tz27XaPl05Vs42Ob",
    "webhook": "Qd39Lv-webhook-Bn64Sy12Ok85Iw73Rg40C",
    "webhook_path": "T0WHp4thQd39LvBn64",
    "smtp": "Hs20Nf-smtppw-Px91",
    "client_secret": "Ju53Xb-oidcpw-Dt86Ce",
    "password": "Mallow-tide-Ox77-quarry",
    "upstream": "sk-Wf15Ga-upstream-Tn48",
    "wrong_password": "Wrong-pebble-Yk29-lantern",
    "basic": "Rb64Ez-basicpw",
    "cookie": "Ao92Dk-cookievalue",
}
API_KEY = "tg_searchme_QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE"
UNKNOWN_KEY = "tg_unknown1_LmN5b1k7Sp3xJq8vTy0cGd4hFr6iWz2uOe9aBk1nXsC"
FORGED = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJhZG1pbiJ9.Vt63Hc-forged-signature-Pz08"
# What any secret of ours looks like, known to this test or not.
_FORMS = re.compile(
    rb"tg_[a-z0-9]{8}_[A-Za-z0-9_-]{43}|tg[rm]_[A-Za-z0-9_-]{40,}|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."
)
_GIVING = ("/auth/login", "/auth/refresh", "/api/keys")


@dataclass(frozen=True)
class EchoesCredentials:
    """Answers with what it was sent for credentials, in the body of an error and in headers that are passed on."""

    status: int

    async def answer(self, exchange: Exchange) -> None:
        said = exchange.received.headers["authorization"]
        body = {"error": {"message": f"not with {said}", "code": said, "param": said, "type": "t"}}
        headers = (
            ("x-request-id", said),
            ("x-ratelimit-limit-requests", said),
            ("x-debug", said),
            ("retry-after", said),
        )
        await Answer(status=self.status, body=orjson.dumps(body), headers=headers).answer(exchange)


@dataclass
class Heard:
    """A server that is talked to, and every byte that it answered."""

    gateway: GatewayProcess
    answers: list[tuple[str, bytes]] = field(default_factory=list)
    made: set[str] = field(default_factory=set)

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
        async with RawClient(self.gateway.base_url) as client:
            await client.send(method, path, **more)
            head = await client.head()
            body = await client.body()
        headers = "\n".join(f"{name}: {value}" for name, value in head.values).encode()
        if path in _GIVING and head.status in (200, 201):
            given = orjson.loads(body)
            self.made |= {given[name] for name in ("access_token", "refresh_token", "key") if name in given}
            self.answers.append((f"{method} {path}: headers", headers))
        else:
            self.answers.append((f"{method} {path}: {head.status}", headers + b"\n\n" + body))
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            said = {}
        return head.status, said if isinstance(said, dict) else {}


def _variables(folder: Path, *, port: int) -> dict[str, str]:
    (folder / "webhook").write_text(GIVEN["webhook"] + "\n")
    (folder / "webhook").chmod(0o600)
    return {
        "UPSTREAM_KEY": GIVEN["upstream"],
        "TIDEGATE_AUTH__JWT_KEYS": f"1:{GIVEN['jwt']}",
        "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{GIVEN['pepper']}",
        "TIDEGATE_ALERTS__WEBHOOK_URL": f"http://127.0.0.1:{port}/{GIVEN['webhook_path']}",
        "TIDEGATE_ALERTS__WEBHOOK_SECRET": f"file:{folder / 'webhook'}",
        "TIDEGATE_MAIL__SMTP_HOST": "127.0.0.1",
        "TIDEGATE_MAIL__SMTP_PORT": str(port),
        "TIDEGATE_MAIL__SMTP_SECURITY": "none",
        "TIDEGATE_MAIL__SMTP_USERNAME": "tide",
        "TIDEGATE_MAIL__SMTP_PASSWORD": GIVEN["smtp"],
        "TIDEGATE_MAIL__SENDER": "tide@example.com",
        "TIDEGATE_SINGLE_SIGN_ON__ISSUER": f"http://127.0.0.1:{port}",
        "TIDEGATE_SINGLE_SIGN_ON__CLIENT_ID": "tide",
        "TIDEGATE_SINGLE_SIGN_ON__CLIENT_SECRET": GIVEN["client_secret"],
        "TIDEGATE_HTTP__PUBLIC_URL": "http://127.0.0.1:8000",
        "TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD": GIVEN["password"],
        "TIDEGATE_BOOTSTRAP__API_KEY": API_KEY,
    }


async def _use(heard: Heard, upstream: ScriptedUpstream) -> None:
    """What works: signing in, keys, limits with alerts, reports, models."""
    credentials = {"email": heard.gateway.admin_email, "password": GIVEN["password"]}
    status, tokens = await heard.ask("POST", "/auth/login", json=credentials)
    assert status == 200
    admin = {"authorization": f"Bearer {tokens['access_token']}"}
    if "refresh_token" in tokens:
        refresh = {"refresh_token": tokens["refresh_token"]}
        assert (await heard.ask("POST", "/auth/refresh", json=refresh))[0] == 200
        await heard.ask("POST", "/auth/refresh", json=refresh)
    alert = {"scope": "workspace", "meter": "requests", "window": "day", "amount": 1, "action": "alert"}
    await heard.ask("POST", "/api/limits", headers=admin, json=alert)
    assert (await heard.ask("POST", "/api/keys", headers=admin, json={"name": "made"}))[0] == 201
    paths = ["/", "/health", "/openapi.json", "/auth/me", "/api/keys", "/api/usage", "/api/requests", "/api/audit"]
    for path in (*paths, "/api/users", "/api/workspaces", "/v1/models", "/.well-known/jwks.json"):
        await heard.ask("GET", path, headers=admin)
    await heard.ask("POST", "/auth/password/forgot", json={"email": heard.gateway.admin_email})
    upstream.enqueue(Completion(), Completion())
    for streamed in (False, True):
        assert (await _chat(heard, stream=streamed))[0] == 200


async def _misuse(heard: Heard, upstream: ScriptedUpstream) -> None:
    """What is refused: wrong credentials in every place that takes them, and in places that do not."""
    email = heard.gateway.admin_email
    for password in (GIVEN["wrong_password"], GIVEN["wrong_password"] + "\r\n", "x" * 2000 + GIVEN["wrong_password"]):
        await heard.ask("POST", "/auth/login", json={"email": email, "password": password})
    await heard.ask("POST", "/auth/login", json={"email": GIVEN["wrong_password"], "password": [GIVEN["password"]]})
    await heard.ask("POST", "/auth/login", json={"email": email, "pass": GIVEN["password"]})
    broken = f'{{"email": "{email}", "password": "{GIVEN["password"]}'.encode()
    await heard.ask("POST", "/auth/login", headers={"content-type": "application/json"}, body=broken)
    basic = base64.b64encode(f"tide:{GIVEN['basic']}".encode()).decode()
    for headers in (
        {"authorization": f"Bearer {UNKNOWN_KEY}"},
        {"x-api-key": UNKNOWN_KEY},
        {"authorization": f"Bearer {API_KEY}", "x-api-key": UNKNOWN_KEY},
        {"authorization": f"Bearer {FORGED}"},
        {"authorization": f"Basic {basic}"},
        {"cookie": f"session={GIVEN['cookie']}"},
        {"host": f"tide:{GIVEN['basic']}@127.0.0.1"},
        {"x-request-id": API_KEY},
        {"user-agent": f"curl Bearer {API_KEY}"},
        {"referer": f"http://tide:{GIVEN['basic']}@127.0.0.1/"},
    ):
        for path in ("/v1/models", "/api/requests"):
            await heard.ask("GET", path, headers=headers)
    for label in (API_KEY, FORGED, GIVEN["upstream"]):
        upstream.enqueue(Completion())
        assert (await _chat(heard, stream=False, **{"x-request-id": label}))[0] == 200
    for path in (
        f"/v1/models/{API_KEY}",
        f"/api/keys/{API_KEY}",
        f"/nothing?access_token={FORGED}",
        f"/x?api_key={API_KEY}",
    ):
        await heard.ask("GET", path)
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500):
        upstream.enqueue(EchoesCredentials(status))
        await _chat(heard, stream=status % 2 == 0)
    said = {"message": f"no: Bearer {GIVEN['upstream']}"}
    upstream.enqueue(Completion(ending="error_event", error=said), refusal(401, f"bad key {GIVEN['upstream']}"))
    await _chat(heard, stream=True)
    await _chat(heard, stream=False)


async def _break(heard: Heard, database_url: str) -> None:
    """What nobody foresaw: a table is gone, so that errors of the database are logged with their traces."""
    await drop_table(database_url, "api_keys")
    admin = {"authorization": f"Bearer {next(token for token in heard.made if token.startswith('eyJ'))}"}
    failed = await heard.ask("POST", "/api/keys", headers=admin, json={"name": "into nothing"})
    assert failed[0] >= 500
    # One that was not asked of before: a refusal is remembered for a while.
    unheard_of = {"authorization": f"Bearer {generate_key().secret}"}
    assert (await heard.ask("GET", "/v1/models", headers=unheard_of))[0] >= 500
    await drop_table(database_url, "users")
    await heard.ask("POST", "/auth/login", json={"email": heard.gateway.admin_email, "password": GIVEN["password"]})


async def _chat(heard: Heard, *, stream: bool, **headers: str) -> tuple[int, dict[str, Any]]:
    body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "high tide"}]}
    sent = {"authorization": f"Bearer {API_KEY}", **headers}
    return await heard.ask("POST", "/v1/chat/completions", headers=sent, json=body)


async def _commands(heard: Heard) -> None:
    """What the command prints, of what works and of what is refused."""
    for arguments in (
        ("config", "show"),
        ("config", "validate"),
        ("keys", "list", "--json"),
        ("users", "list", "--json"),
        ("limits", "list", "--json"),
        ("usage", "--json"),
        *((name, "--help") for name in ("serve", "config", "keys", "users", "usage", "migrate")),
    ):
        done = await heard.gateway.command(*arguments, check=False)
        heard.answers.append((f"tidegate {' '.join(arguments)}", (done.stdout + done.stderr).encode()))


@dataclass(frozen=True)
class Stores:
    plan: Mapping[str, Any]
    database_url: str
    redis: tuple[str, str] | None = None


@pytest.fixture(params=["one process, debug log", "production"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    if request.param != "production":
        url = f"sqlite+aiosqlite:///{tmp_path.resolve()}/gateway/var/tidegate.db"
        return Stores({"variables": {"TIDEGATE_LOG_LEVEL": "debug"}}, url)
    url, redis_url, prefix = (request.getfixturevalue(name) for name in ("postgres_url", "redis_url", "redis_prefix"))
    plan = {"environment": "production", "workers": 2, "database_url": url, "redis_url": redis_url}
    return Stores({**plan, "redis_prefix": prefix}, url, (redis_url, prefix))


async def test_no_secret_is_printed_answered_or_stored(
    tmp_path: Path, upstream: ScriptedUpstream, stores: Stores
) -> None:
    variables = {**_variables(tmp_path, port=free_port()), **stores.plan.get("variables", {})}
    named = catalogue(upstream.base_url, ["m"], upstream='breaker = "off"')
    plan = GatewayPlan(**{"catalogue": named, **stores.plan, "variables": variables})
    places: list[tuple[str, bytes]] = []
    async with GatewayProcess(tmp_path, plan) as gateway:
        heard = Heard(gateway)
        await _use(heard, upstream)
        await _misuse(heard, upstream)
        await _commands(heard)
        assert any(GIVEN["upstream"] in request.headers["authorization"] for request in upstream.requests)
        places += [(f"table {name}", row) async for name, row in rows_of(stores.database_url)]
        places += [(f"redis {name}", value) async for name, value in keys_of(*stores.redis)] if stores.redis else []
        places += [(f"file {name}", content) for name, content in files_under(gateway.folder)]
        await _break(heard, stores.database_url)
        await eventually(lambda: "Traceback" in gateway.output())
    places += [(f"file {name}", content) for name, content in files_under(gateway.folder)]
    places += heard.answers
    searched = {*GIVEN.values(), API_KEY.rpartition("_")[2], UNKNOWN_KEY.rpartition("_")[2], *heard.made}
    searched.add(FORGED.rpartition(".")[2])
    assert len(heard.made) >= 3
    assert {name.split()[0] for name, _ in places} >= {"table", "file", "tidegate", "GET", "POST"}
    leaks = {(place, secret) for place, content in places for secret in found_in(content, searched)}
    assert not leaks
    shapes = {(place, form) for place, content in places for form in _FORMS.findall(content)}
    assert not shapes


def test_the_search_finds_every_form() -> None:
    secret = GIVEN["password"]
    for form in forms_of(secret):
        assert found_in(b"before " + form + b" after", [secret]) == {secret}
    assert found_in(b"nothing of it", [secret]) == set()
    assert _FORMS.search(f"key {API_KEY}".encode())
    assert _FORMS.search(FORGED.encode())
