"""A start in production that breaks every rule at once: each is named, in JSON lines, and nothing of a secret is."""

from pathlib import Path

import orjson

from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.stand_in import ECHO, refusal

_SECRET = "6f1d2c3b4a59687786a5b4c3d2e1f0ff0112233445566778899aabbccddeeff0"
_ISSUED = "Kq7Zr2Xw9Lm4Tn8Vb3Hc"
_CATALOGUE = """
[upstreams.far]
provider = "openai"
base_url = "http://models.example.com/v1"
api_key = "sk-written-into-the-file"
[upstreams.gone]
provider = "openai"
base_url = "https://models.example.com/v1"
api_key = "file:/nowhere/key"
[[models]]
name = "m"
attempts = ["far/m", "gone/m"]
"""
_BROKEN = {
    "TIDEGATE_LOG_LEVEL": "debug",
    "TIDEGATE_DATABASE__URL": "sqlite+aiosqlite:////nowhere/tide.db",
    "TIDEGATE_SERVER__WORKERS": "2",
    "TIDEGATE_AUTH__JWT_KEYS": f"1:{_SECRET},2:{_SECRET}",
    "TIDEGATE_AUTH__API_KEY_PEPPERS": "1:changeme-changeme-Kq7Zr2Xw9Lm4Tn8V",
    "TIDEGATE_ALERTS__WEBHOOK_URL": "http://hooks.example.com/T0K3N",
    "TIDEGATE_ALERTS__WEBHOOK_SECRET": "0123456789abcdef0123456789abcdef",
    "TIDEGATE_MAIL__SMTP_HOST": "mail.example.com",
    "TIDEGATE_MAIL__SENDER": "tide@example.com",
    "TIDEGATE_MAIL__SMTP_USERNAME": "tide",
    "TIDEGATE_MAIL__SMTP_PASSWORD": _ISSUED,
    "TIDEGATE_MAIL__SMTP_SECURITY": "none",
    "TIDEGATE_SINGLE_SIGN_ON__ISSUER": "http://login.example.com",
    "TIDEGATE_SINGLE_SIGN_ON__CLIENT_ID": "tide",
    "TIDEGATE_SINGLE_SIGN_ON__CLIENT_SECRET": _ISSUED,
    "TIDEGATE_HTTP__CORS_ORIGINS": "*",
    "TIDEGATE_HTTP__TRUSTED_PROXIES": "*",
    "TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD": "administrator1",
    "TIDEGATE_SERVER__DRIAN_S": "1",
}
_NAMED = {
    "TIDEGATE_LOG_LEVEL",
    "TIDEGATE_DATABASE__URL",
    "TIDEGATE_REDIS__URL",
    "TIDEGATE_AUTH__JWT_KEYS",
    "TIDEGATE_AUTH__API_KEY_PEPPERS",
    "TIDEGATE_ALERTS__WEBHOOK_URL",
    "TIDEGATE_ALERTS__WEBHOOK_SECRET",
    "TIDEGATE_MAIL__SMTP_SECURITY",
    "TIDEGATE_SINGLE_SIGN_ON__ISSUER",
    "TIDEGATE_SINGLE_SIGN_ON__CLIENT_SECRET",
    "TIDEGATE_HTTP__PUBLIC_URL",
    "TIDEGATE_HTTP__CORS_ORIGINS",
    "TIDEGATE_HTTP__TRUSTED_PROXIES",
    "TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD",
    "TIDEGATE_SERVER__DRIAN_S",
    "TIDEGATE_CONFIG_TOML",
}
_SECRETS = (_SECRET, _ISSUED, "Kq7Zr2Xw9Lm4Tn8V", "0123456789abcdef", "T0K3N", "administrator1", "sk-written-into")


async def test_every_fault_of_a_production_start_is_named_at_once(tmp_path: Path) -> None:
    plan = GatewayPlan(catalogue=_CATALOGUE, environment="production", variables=_BROKEN, cold=True)
    gateway = GatewayProcess(tmp_path, plan)
    faults = [orjson.loads(line) for line in await refusal(gateway)]
    assert {fault["level"] for fault in faults} == {"error"}
    told = [fault["event"] for fault in faults]
    assert {line.split(":")[0] for line in told} == _NAMED
    of_catalogue = [line.split(": ")[1] for line in told if line.startswith("TIDEGATE_CONFIG_TOML")]
    assert sorted(of_catalogue) == ["upstreams.far.api_key", "upstreams.far.base_url", "upstreams.gone.api_key"]
    assert not [secret for secret in _SECRETS if secret in gateway.output()]
    done = await gateway.command("config", "validate", "--json", check=False)
    assert done.returncode == 1
    assert sorted(orjson.loads(done.stdout)["faults"]) == sorted(told)


async def test_files_of_secrets_that_others_may_read_are_worth_a_warning(tmp_path: Path) -> None:
    for name, content, mode in (
        ("jwt", f"1:{_SECRET}", 0o644),
        ("pepper", f"1:{_SECRET[::-1]}", 0o600),
        ("key", "sk-x", 0o604),
    ):
        (tmp_path / name).write_text(content + "\n")
        (tmp_path / name).chmod(mode)
    named = (
        f'[upstreams.far]\nprovider = "openai"\nbase_url = "https://far.example.com"\napi_key = "file:{tmp_path}/key"\n'
    )
    variables = {
        "TIDEGATE_AUTH__JWT_KEYS": f"file:{tmp_path}/jwt",
        "TIDEGATE_AUTH__API_KEY_PEPPERS": f"file:{tmp_path}/pepper",
    }
    plan = GatewayPlan(catalogue=named + '[[models]]\nname = "m"\nattempts = ["far/m"]\n', variables=variables)
    async with GatewayProcess(tmp_path, plan) as gateway:
        warned = [line["event"] for line in gateway.lines() if line["level"] == "warning"]
    assert warned == [
        f"TIDEGATE_AUTH__JWT_KEYS: every user of this machine may read file:{tmp_path}/jwt; chmod 600 it",
        f"upstreams.far.api_key: every user of this machine may read file:{tmp_path}/key; chmod 600 it",
    ]


async def test_secrets_are_read_where_a_reference_says_and_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "peppers").write_text(f"1:{_SECRET[::-1]}\n")
    variables = {
        "TIDEGATE_AUTH__JWT_KEYS": "env:MOUNTED",
        "MOUNTED": f"1:{_SECRET}",
        "TIDEGATE_AUTH__API_KEY_PEPPERS": f"file:{tmp_path}/peppers",
        "TIDEGATE_DATABASE__URL": f"file:{tmp_path}/none",
        "TIDEGATE_REDIS__URL": "env:NOT_THERE",
    }
    plan = GatewayPlan(catalogue=ECHO, environment="production", variables=variables)
    lines = [orjson.loads(line)["event"] for line in await refusal(GatewayProcess(tmp_path, plan))]
    assert lines == [
        f"TIDEGATE_DATABASE__URL: there is nothing at file:{tmp_path}/none",
        "TIDEGATE_REDIS__URL: there is nothing at env:NOT_THERE",
    ]
