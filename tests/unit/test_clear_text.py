"""What goes in the clear beyond this machine is named whole, in one line, and nothing else is."""

from typing import Any

import pytest

from tidegate.settings import Settings
from tidegate.settings.clear_text import clear_text_advice, spoken_in_the_clear

HERE: dict[str, Any] = {
    "database": {"url": "postgresql+asyncpg://u:w@127.0.0.1/x"},
    "redis": {"url": "redis://localhost/0"},
    "alerts": {"webhook_url": "http://[::1]/hook", "webhook_secret": "6f1d2c3b4a59687786a5b4c3d2e1f0ff"},
    "tracing": {"endpoint": "http://localhost:4318"},
    "mail": {"smtp_host": "127.0.0.1", "smtp_security": "none", "sender": "a@example.com"},
}
PAIR = {"webhook_secret": "6f1d2c3b4a59687786a5b4c3d2e1f0ff"}


def _told(group: str, values: dict[str, Any], **upstreams: str) -> list[str]:
    return spoken_in_the_clear(Settings.model_validate({**HERE, group: values}), upstreams)


@pytest.mark.parametrize(
    ("group", "values", "told"),
    [
        ("database", {"url": "postgresql+asyncpg://u@db/x"}, ["TIDEGATE_DATABASE__TLS (db)"]),
        ("database", {"url": "postgresql+asyncpg://u@db/x", "tls": "off"}, ["TIDEGATE_DATABASE__TLS (db)"]),
        ("database", {"url": "postgresql+asyncpg://u@db/x?ssl=prefer"}, ["TIDEGATE_DATABASE__TLS (db)"]),
        ("database", {"url": "postgresql+asyncpg://u@/x?host=a&host=b&host=::1"}, ["TIDEGATE_DATABASE__TLS (a, b)"]),
        ("database", {"url": "postgresql+asyncpg://u@db/x?ssl=verify-full"}, []),
        ("database", {"url": "postgresql+asyncpg://u@db/x", "tls": "require"}, []),
        ("database", {"url": "postgresql+asyncpg://u@db/x", "tls": "verify"}, []),
        ("database", {"url": "postgresql+asyncpg://u@/x?host=/run/postgresql"}, []),
        ("database", {}, []),
        ("redis", {"url": "redis://:secret-word@cache:7000/0"}, ["TIDEGATE_REDIS__URL (cache)"]),
        ("redis", {"url": "rediss://cache/0"}, []),
        ("redis", {"url": "unix:///run/redis.sock"}, []),
        ("redis", {}, []),
        (
            "alerts",
            {"webhook_url": "http://hooks.internal/T0K3N", **PAIR},
            ["TIDEGATE_ALERTS__WEBHOOK_URL (hooks.internal)"],
        ),
        ("alerts", {"webhook_url": "https://hooks.internal/T0K3N", **PAIR}, []),
        ("tracing", {"endpoint": "http://collector:4318"}, ["TIDEGATE_TRACING__ENDPOINT (collector)"]),
        (
            "mail",
            {"smtp_host": "mail", "smtp_security": "none", "sender": "a@example.com"},
            ["TIDEGATE_MAIL__SMTP_SECURITY (mail)"],
        ),
        ("mail", {"smtp_host": "mail", "sender": "a@example.com"}, []),
        (
            "single_sign_on",
            {"issuer": "http://login.internal", "client_id": "x"},
            ["TIDEGATE_SINGLE_SIGN_ON__ISSUER (login.internal)"],
        ),
    ],
)
def test_each_is_named_by_its_setting_and_where_it_leads(group: str, values: dict[str, Any], told: list[str]) -> None:
    assert _told(group, values) == told


def test_upstreams_are_named_as_the_catalogue_has_them() -> None:
    upstreams = {"near": "http://127.0.0.1:8000/v1", "vllm": "http://vllm:8000/v1", "far": "https://far/v1", "echo": ""}
    assert spoken_in_the_clear(Settings.model_validate(HERE), upstreams) == ["upstreams.vllm.base_url (vllm)"]


def test_all_of_it_is_one_line_and_none_of_it_no_line() -> None:
    assert clear_text_advice(Settings.model_validate(HERE), {}) is None
    told = clear_text_advice(
        Settings.model_validate({**HERE, "redis": {"url": "redis://:secret-word@cache"}}), {"v": "http://v/v1"}
    )
    assert told is not None
    assert "TIDEGATE_REDIS__URL (cache); upstreams.v.base_url (v)" in told
    assert "secret-word" not in told
