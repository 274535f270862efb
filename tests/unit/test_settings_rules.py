"""What production refuses: each fault alone names its variable, all of them come at once, and no secret is told."""

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from pydantic import ValidationError
from redis.asyncio import Redis

from tests.support.server import ADMIN_PASSWORD, API_KEY
from tidegate.app import create_app
from tidegate.server.conditions import require_conditions
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings, setting_advice
from tidegate.settings.hosts import is_loopback, is_private
from tidegate.settings.rules import faults_everywhere, production_faults
from tidegate.settings.secrets import weakness
from tidegate.storage.pipeline_wire import Address
from tidegate.storage.redis import open_redis

_ROOT = Path(__file__).resolve().parents[2]
_ECHO = '[upstreams.echo]\nprovider = "echo"\n[[models]]\nname = "echo"\nattempts = ["echo/echo"]\n'
_JWT = "6f1d2c3b4a59687786a5b4c3d2e1f0ff0112233445566778899aabbccddeeff0"
_PEPPER = "a1b2c3d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeeff01"
_ISSUED = "Kq7Zr2Xw9Lm4Tn8Vb3Hc"
_MAIL = {"smtp_host": "mail.example.com", "sender": "gateway@example.com"}
_WITH_PASSWORD = {**_MAIL, "smtp_username": "tide", "smtp_password": _ISSUED}
_SSO = {"issuer": "https://login.example.com", "client_id": "tide"}
_PUBLIC = {"public_url": "https://gateway.example.com"}
Groups = Mapping[str, Mapping[str, Any]]


def settings_with(changed: Groups | None = None, **top: Any) -> Settings:
    """Settings that production takes, with some groups' values changed."""
    groups: dict[str, dict[str, Any]] = {
        "database": {"url": "postgresql+asyncpg://u:word@127.0.0.1/x"},
        "redis": {"url": "redis://127.0.0.1/0"},
        "auth": {"jwt_keys": f"1:{_JWT}", "api_key_peppers": f"1:{_PEPPER}"},
    }
    for name, values in (changed or {}).items():
        groups[name] = {**groups.get(name, {}), **values}
    return Settings(environment="production", config_toml=_ECHO, **{**groups, **top})


def test_what_is_right_is_taken() -> None:
    right: Groups = {
        "http": {
            **_PUBLIC,
            "cors_origins": "https://app.example.com,http://localhost:3000,http://[::1]:5173",
            "trusted_proxies": "10.0.0.0/8,fc00::/7,203.0.113.0/24",
        },
        "mail": _WITH_PASSWORD,
        "single_sign_on": {**_SSO, "client_secret": "another-" + _ISSUED},
        "bootstrap": {"admin_email": "ada@example.com", "admin_password": ADMIN_PASSWORD, "api_key": API_KEY},
    }
    settings = settings_with(right)
    assert production_faults(settings) == []
    assert setting_advice(settings, {}) == []
    assert require_conditions(settings).find("echo") is not None


_BROKEN: list[tuple[str, Groups, str]] = [
    ("DATABASE__URL", {"database": {"url": None}}, "needed in production"),
    ("DATABASE__URL", {"database": {"url": "sqlite+aiosqlite:////tmp/x.db"}}, "SQLite serves one worker"),
    ("REDIS__URL", {"redis": {"url": None}}, "more than one worker"),
    (
        "DATABASE__TLS",
        {"database": {"url": "postgresql+asyncpg://u:word@db.example.com/x"}},
        "choose verify",
    ),
    (
        "DATABASE__TLS",
        {"database": {"url": "postgresql+asyncpg://u:word@db.example.com/x?ssl=prefer"}},
        "choose verify",
    ),
    ("DATABASE__TLS", {"database": {"url": "postgresql+asyncpg://u:w@/x?host=db&host=a.example.com:5432"}}, "choose"),
    ("DATABASE__TLS", {"database": {"url": "postgresql+asyncpg://u:w@db/x?host=db,a.example.com"}}, "choose verify"),
    ("AUTH__JWT_KEYS", {"auth": {"jwt_keys": ()}}, "needed in production"),
    ("AUTH__API_KEY_PEPPERS", {"auth": {"api_key_peppers": ()}}, "needed in production"),
    ("AUTH__JWT_KEYS", {"auth": {"jwt_keys": "1:changeme-Kq7Zr2Xw9Lm4Tn8Vb3HcJd6Fg"}}, "placeholder"),
    ("AUTH__API_KEY_PEPPERS", {"auth": {"api_key_peppers": "1:Kq7Zr2Xw9Lm4Tn8Vb3Hc-secret-Jd6Fg"}}, "placeholder"),
    ("AUTH__JWT_KEYS", {"auth": {"jwt_keys": f"1:{_JWT[:24] * 2}"}}, "repeats itself"),
    ("AUTH__API_KEY_PEPPERS", {"auth": {"api_key_peppers": f"1:{_JWT}"}}, "used twice, as in TIDEGATE_AUTH__JWT_KEYS"),
    ("AUTH__JWT_KEYS", {"auth": {"jwt_keys": f"1:{_JWT},2:{_JWT}"}}, "used twice, in it"),
    (
        "ALERTS__WEBHOOK_SECRET",
        {"alerts": {"webhook_url": "https://hooks.example.com", "webhook_secret": _PEPPER}},
        "used twice, as in TIDEGATE_AUTH__API_KEY_PEPPERS",
    ),
    (
        "ALERTS__WEBHOOK_SECRET",
        {
            "alerts": {
                "webhook_url": "https://hooks.example.com",
                "webhook_secret": "0123456789abcdefghijklmnopqrstuvwxyz",
            }
        },
        "sequence",
    ),
    (
        "ALERTS__WEBHOOK_URL",
        {"alerts": {"webhook_url": "http://hooks.example.com", "webhook_secret": "Kq7Zr2Xw9Lm4Tn8Vb3HcJd6FgKq7Zr2Xw9"}},
        "in the clear",
    ),
    (
        "MAIL__SMTP_PASSWORD",
        {"mail": {**_WITH_PASSWORD, "smtp_password": "changeme-now"}, "http": _PUBLIC},
        "placeholder",
    ),
    ("MAIL__SMTP_PASSWORD", {"mail": {**_WITH_PASSWORD, "smtp_password": "Kq7Zr2X"}, "http": _PUBLIC}, "shorter than"),
    ("MAIL__SMTP_PASSWORD", {"mail": {**_WITH_PASSWORD, "smtp_password": _JWT}, "http": _PUBLIC}, "used twice"),
    ("MAIL__SMTP_SECURITY", {"mail": {**_WITH_PASSWORD, "smtp_security": "none"}, "http": _PUBLIC}, "in the clear"),
    ("HTTP__PUBLIC_URL", {"mail": _MAIL}, "needed for links in e-mails"),
    ("HTTP__PUBLIC_URL", {"single_sign_on": _SSO}, "needed for single sign-on"),
    ("HTTP__PUBLIC_URL", {"http": {"public_url": "http://gateway.example.com"}}, "in the clear"),
    ("SINGLE_SIGN_ON__ISSUER", {"single_sign_on": {**_SSO, "issuer": "http://10.0.0.9"}, "http": _PUBLIC}, "https://"),
    (
        "SINGLE_SIGN_ON__CLIENT_SECRET",
        {"single_sign_on": {**_SSO, "client_secret": "secret-of-tide"}, "http": _PUBLIC},
        "placeholder",
    ),
    (
        "SINGLE_SIGN_ON__CLIENT_SECRET",
        {"single_sign_on": {**_SSO, "client_secret": _JWT}, "http": _PUBLIC},
        "used twice, as in TIDEGATE_AUTH__JWT_KEYS",
    ),
    *(
        ("HTTP__CORS_ORIGINS", {"http": {"cors_origins": origin}}, "exact origin")
        for origin in ("*", "null", "https://*.example.com", "https://a.example.com/", "https://A.example.com")
    ),
    ("HTTP__CORS_ORIGINS", {"http": {"cors_origins": "https://a.example.com:443"}}, "exact origin"),
    ("HTTP__CORS_ORIGINS", {"http": {"cors_origins": "http://app.example.com"}}, "https://"),
    *(
        ("HTTP__TRUSTED_PROXIES", {"http": {"trusted_proxies": proxy}}, "everyone")
        for proxy in ("*", "0.0.0.0/0", "::/0", "128.0.0.0/1", "2000::/3")
    ),
    ("AUTH__JWT_KEYS", {"auth": {"jwt_keys": "1:Kq7Zr2Xw9Lm4Tn8Vb3HcYe6Sj1Pd5Gf0"}}, "192 bits"),
]


@pytest.mark.parametrize(("variable", "changed", "told"), _BROKEN)
def test_production_refuses(variable: str, changed: Groups, told: str) -> None:
    (fault,) = production_faults(settings_with(changed))
    assert fault.startswith(f"TIDEGATE_{variable}: ")
    assert told in fault
    for secret in (_JWT, _PEPPER, _ISSUED, "changeme-now", "Kq7Zr2X"):
        assert secret not in fault


def test_production_refuses_every_key_that_our_own_pages_show() -> None:
    pages = [_ROOT / "README.md", _ROOT / ".env.example", *(_ROOT / "docs").rglob("*.md")]
    shown = {key for page in pages for key in re.findall(r"tg_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", page.read_text("utf-8"))}
    assert shown
    for key in (*shown, "tg_abcdefgh_" + "changeme" * 5 + "now"):
        given: Groups = {"bootstrap": {"admin_email": "ada@example.com", "api_key": key}}
        (fault,) = production_faults(settings_with(given))
        assert fault.startswith("TIDEGATE_BOOTSTRAP__API_KEY: ")
        assert key not in fault
    for page in pages:
        # A secret in an example is copied: there is none but what a shell has to make.
        assert not re.findall(r"(?:JWT_KEYS|PEPPERS|WEBHOOK_SECRET)=1?:?[A-Za-z0-9+/_-]{32,}", page.read_text("utf-8"))


def test_production_refuses_a_debug_log() -> None:
    (fault,) = production_faults(settings_with(log_level="debug"))
    assert fault.startswith("TIDEGATE_LOG_LEVEL: ")


def test_one_worker_needs_neither_redis_nor_postgresql() -> None:
    one: Groups = {
        "redis": {"url": None},
        "database": {"url": "sqlite+aiosqlite:////tmp/x.db"},
        "server": {"workers": 1},
    }
    assert production_faults(settings_with(one)) == []


@pytest.mark.parametrize("password", ["Password1234", "tidegate-admin", "ada@example.com", "changeme-Kq7Zr2Xw9Lm4Tn8V"])
def test_production_refuses_a_bootstrap_password_that_others_guess(password: str) -> None:
    given: Groups = {"bootstrap": {"admin_email": "ada@example.com", "admin_password": password}}
    with pytest.raises(StartRefused) as refused:
        require_conditions(settings_with(given))
    (fault,) = refused.value.faults
    assert fault.startswith("TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD: ")
    assert "remove it once" in fault
    assert password not in fault


@pytest.mark.parametrize(
    ("base_url", "is_taken"),
    [
        ("https://api.openai.com/v1", True),
        ("http://127.0.0.1:8080/v1", True),
        ("http://[::1]:8080/v1", True),
        ("http://vllm:8000/v1", True),
        ("http://vllm.models.svc:8000/v1", True),
        ("http://gpu.internal/v1", True),
        ("http://192.168.7.7/v1", True),
        ("http://api.openai.com/v1", False),
        ("http://8.8.8.8/v1", False),
        ("http://134744072/v1", False),
        ("http://0x8080808/v1", False),
        ("http://[2001:4860::1]/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://172.32.0.1/v1", False),
    ],
)
def test_a_key_goes_to_no_stranger_in_the_clear(tmp_path: Path, base_url: str, is_taken: bool) -> None:
    (tmp_path / "key").write_text("sk-of-the-upstream")
    tables = [f'[upstreams.far]\nprovider = "openai"\nbase_url = "{base_url}"\napi_key = "file:{tmp_path / "key"}"']
    tables.append('[[models]]\nname = "m"\nattempts = ["far/m"]\n')
    settings = settings_with().model_copy(update={"config_toml": "\n".join(tables)})
    if is_taken:
        assert require_conditions(settings).upstreams["far"].api_key is not None
        return
    with pytest.raises(StartRefused) as refused:
        require_conditions(settings)
    (fault,) = refused.value.faults
    assert "TIDEGATE_CONFIG_TOML:3: upstreams.far.base_url" in fault
    assert "https://" in fault


def test_without_a_key_an_upstream_may_be_anywhere() -> None:
    text = '[upstreams.far]\nprovider = "openai"\nbase_url = "http://api.example.com"\n[[models]]\nname = "m"\n'
    settings = settings_with().model_copy(update={"config_toml": text + 'attempts = ["far/m"]\n'})
    assert require_conditions(settings).upstreams["far"].api_key is None


@pytest.mark.parametrize(
    ("host", "loopback", "private"),
    [
        ("localhost", True, True),
        ("LOCALHOST.", True, True),
        ("127.8.9.1", True, True),
        ("::ffff:127.0.0.1", True, True),
        ("db.local", False, True),
        ("100.64.0.1", False, True),
        ("fe80::1%eth0", False, True),
        ("::ffff:8.8.8.8", False, False),
        ("internal", False, True),
        ("my.svc.example.com", False, False),
        ("", False, False),
    ],
)
def test_where_a_host_is(host: str, loopback: bool, private: bool) -> None:
    assert (is_loopback(host), is_private(host)) == (loopback, private)


@pytest.mark.parametrize(
    "secret",
    [
        "changeme" * 4,
        "0123456789abcdef" * 2,
        "deadbeef" * 8,
        b"a secret that is only hex of text".hex(),
        "dGhpcyBpcyBteSB2ZXJ5IGxvbmcgc2VjcmV0IHBhc3NwaHJhc2U=",
        "$(openssl rand -hex 32)-and-so-on-1234",
        "<32 random bytes of your own here>",
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "my-own-placeholder-for-the-time-being",
    ],
)
def test_weak_secrets_are_known(secret: str) -> None:
    told = weakness(secret)
    assert told
    assert secret not in told


def test_random_secrets_are_never_weak() -> None:
    import random
    from base64 import b64encode, urlsafe_b64encode

    drawn = random.Random(20261122)
    for _ in range(2000):
        secret = drawn.randbytes(32)
        for form in (
            secret.hex(),
            secret.hex().upper(),
            b64encode(secret).decode(),
            urlsafe_b64encode(secret).decode(),
        ):
            assert weakness(form) is None, form


def test_advice_names_what_may_be_wrong(tmp_path: Path) -> None:
    exposed = tmp_path / "jwt"
    exposed.write_text("x")
    exposed.chmod(0o644)
    settings = settings_with(
        {
            "database": {"url": "postgresql+asyncpg://u@db.example.com/x", "tls": "off"},
            "redis": {"url": "redis://cache.example.com"},
        }
    )
    assert production_faults(settings) == []
    environ = {"TIDEGATE_AUTH__JWT_KEYS": f"file:{exposed}", "TIDEGATE_CONFIG": f"file:{exposed}"}
    told = setting_advice(settings, environ)
    assert [line.split(": ")[0] for line in told] == [
        "TIDEGATE_AUTH__JWT_KEYS",
        "TIDEGATE_DATABASE__URL",
        "TIDEGATE_DATABASE__TLS",
        "TIDEGATE_REDIS__URL",
    ]
    exposed.chmod(0o600)
    assert len(setting_advice(settings, environ)) == 3
    assert setting_advice(Settings(environment="test"), {}) == []


def test_no_setting_turns_the_docs_on_in_production() -> None:
    served = {route.path for route in iter_route_contexts(create_app(settings_with()).routes)}
    assert "/health" in served
    assert not served & {"/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"}
    names = [name for name, _ in Settings.model_fields.items()]
    assert not any("docs" in name or "debug" in name for name in names)


@pytest.mark.parametrize(
    ("host", "chosen", "is_told"),
    [
        ("127.0.0.1", {}, False),
        ("localhost", {}, False),
        ("/x?host=/run/postgresql", {}, False),
        ("/x?host=127.0.0.1:5432&host=localhost:5433", {}, False),
        ("/x?host=127.0.0.1:5432&host=[fd00::1]:5433", {}, True),
        ("/x?host=10.0.0.9&host=db.example.com", {"tls": "require"}, True),
        ("db.internal", {}, True),
        ("10.0.0.9", {}, True),
        ("10.0.0.9", {"tls": "off"}, False),
        ("10.0.0.9/x?ssl=verify-full", {}, False),
        ("10.0.0.9/x?ssl=prefer", {}, True),
        ("db.example.com", {"tls": "verify"}, False),
        ("db.example.com", {"tls": "require"}, True),
        ("db.example.com", {"tls": "off"}, True),
        ("db.example.com/x?ssl=require", {}, False),
    ],
)
def test_how_the_database_is_spoken_to_is_somebodys_choice(host: str, chosen: dict[str, str], is_told: bool) -> None:
    place = host if "/" in host else f"{host}/x"
    settings = settings_with({"database": {"url": f"postgresql+asyncpg://u:word@{place}", **chosen}})
    assert production_faults(settings) == []
    told = setting_advice(settings, {})
    assert [line.split(": ")[0] for line in told] == (["TIDEGATE_DATABASE__TLS"] if is_told else [])


_AUTHORITY = _ROOT / "tests" / "support" / "tls" / "certificate.pem"


@pytest.mark.parametrize(
    ("group", "variable", "values", "told"),
    [
        ("database", "ca_file", {"tls": "require", "ca_file": _AUTHORITY}, "TIDEGATE_DATABASE__TLS=verify"),
        ("database", "ca_file", {"ca_file": _AUTHORITY}, "TIDEGATE_DATABASE__TLS=verify"),
        ("database", "ca_file", {"tls": "verify", "ca_file": "/nowhere/ca.pem"}, "cannot be read"),
        ("database", "ca_file", {"tls": "verify", "ca_file": Path(__file__)}, "BEGIN CERTIFICATE"),
        ("database", "tls", {"url": "postgresql+asyncpg://h/x?ssl=require", "tls": "verify"}, "take its ssl= out"),
        ("redis", "ca_file", {"url": "redis://h", "ca_file": _AUTHORITY}, "rediss://"),
        ("redis", "ca_file", {"ca_file": _AUTHORITY}, "rediss://"),
        ("redis", "ca_file", {"url": "rediss://h?ssl_cert_reqs=none", "ca_file": _AUTHORITY}, "ssl_cert_reqs="),
        ("redis", "ca_file", {"url": "rediss://h/0?db=1&ssl_check_hostname=no", "ca_file": _AUTHORITY}, "take out"),
    ],
)
def test_what_says_nothing_of_tls_is_refused_by_its_name(
    group: str, variable: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"environment": "test", group: values})
    (fault,) = refused.value.errors()
    assert fault["loc"] == (group, variable)
    assert told in fault["msg"]


def test_redis_is_told_which_authority_to_trust_by_every_client() -> None:
    given = {"url": "rediss://:p%40ss@h:6380/2?ssl_ca_certs=/of/the/url", "ca_file": _AUTHORITY}
    settings = Settings.model_validate({"environment": "test", "redis": given})
    url = settings.redis.trusting_url
    assert url is not None
    address = Address.of(url)
    assert (address.host, address.port, address.db, address.password) == ("h", 6380, 2, "p@ss")
    assert address.tls is not None
    context = address.tls.get()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) > 0
    client = open_redis(settings)
    assert isinstance(client, Redis)
    assert client.connection_pool.connection_kwargs["ssl_ca_certs"] == str(_AUTHORITY)
    plain = Settings.model_validate({"environment": "test", "redis": {"url": "redis://h"}})
    assert plain.redis.trusting_url == "redis://h"


def test_passwords_are_not_turned_off_where_nothing_else_lets_anybody_in() -> None:
    off: Groups = {"auth": {"password_log_in": False}}
    (fault,) = faults_everywhere(settings_with(off))
    assert fault.startswith("TIDEGATE_AUTH__PASSWORD_LOG_IN: ")
    assert "TIDEGATE_SINGLE_SIGN_ON__ISSUER" in fault
    assert faults_everywhere(settings_with({**off, "single_sign_on": _SSO})) == []
    assert faults_everywhere(settings_with()) == []
