"""The image's steps, each run in a clean directory, and what they made: a gateway that is no root and writes nowhere.

No container engine is here; what that leaves untried is said in docs/guide/deploying.md.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.dockerfile import Image
from tests.support.server import ADMIN_EMAIL, ADMIN_PASSWORD, API_KEY, free_port
from tests.support.stand_in import ECHO
from tests.support.waiting import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
_NUMBER = 10001
_SECRETS = {
    "TIDEGATE_AUTH__JWT_KEYS": "1:6f1d2c3b4a59687786a5b4c3d2e1f0ff0112233445566778899aabbccddeeff0",
    "TIDEGATE_AUTH__API_KEY_PEPPERS": "1:a1b2c3d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeeff01",
}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    folder = Path(tempfile.mkdtemp(prefix="tidegate-image-"))
    # Its user is another than who builds it.
    folder.chmod(0o755)
    try:
        image = Image(folder)
        image.build(ROOT / "deploy" / "Dockerfile", context=ROOT)
        yield image
    finally:
        shutil.rmtree(folder)


def test_the_image_serves_in_production_as_a_user_who_may_write_only_to_its_volume(
    image: Image, postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    port = free_port()
    environ = image.environ | {
        "TIDEGATE_DATABASE__URL": postgres_url,
        "TIDEGATE_REDIS__URL": redis_url,
        "TIDEGATE_REDIS__KEY_PREFIX": redis_prefix,
        "TIDEGATE_CONFIG_TOML": ECHO,
        "TIDEGATE_SERVER__WORKERS": "2",
        "TIDEGATE_SERVER__HOST": "127.0.0.1",
        "TIDEGATE_SERVER__PORT": str(port),
        "TIDEGATE_BOOTSTRAP__ADMIN_EMAIL": ADMIN_EMAIL,
        "TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD": ADMIN_PASSWORD,
        "TIDEGATE_BOOTSTRAP__API_KEY": API_KEY,
        **_SECRETS,
    }
    assert (environ["TIDEGATE_ENVIRONMENT"], image.user) == ("production", f"{_NUMBER}:{_NUMBER}")
    as_user: dict[str, Any] = (
        {"user": _NUMBER, "group": _NUMBER, "extra_groups": ()} if os.geteuid() == 0 and image.is_for_all_users else {}
    )
    before = _files(image.root)
    subprocess.run(image.command("migrate"), env=environ, cwd="/", check=True, timeout=120, **as_user)
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            image.command(), env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, **as_user
        )
        try:
            health = [str(image.root / "opt/tidegate/bin/python"), *image.health_command[1:]]
            eventually_sync(
                lambda: subprocess.run(health, env=environ, capture_output=True, check=False).returncode == 0,
                within_s=60,
            )
            eventually_sync(lambda: _ready(port), within_s=60)
            _ask(port)
        finally:
            server.send_signal(signal.Signals[image.stop_signal])
            code = server.wait(60)
        output.seek(0)
        assert code == 0, output.read().decode()
    written = {path for path in _files(image.root) - before if not path.startswith("var/lib/tidegate/")}
    assert written == set()


def test_the_image_holds_no_tests_no_compiler_and_no_source_tree(image: Image) -> None:
    names = {path.name for path in (image.root / "opt/tidegate/bin").iterdir()}
    assert "tidegate" in names
    assert not names & {"pytest", "uv", "mypy", "gcc"}
    assert not (image.root / "src").exists()


def _ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def _ask(port: int) -> None:
    answer = httpx2.post(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        headers={"Authorization": f"Bearer {API_KEY}"},
        json={"model": "echo", "messages": [{"role": "user", "content": "ahoy"}]},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    assert "ahoy" in answer.text
    assert httpx2.get(f"http://127.0.0.1:{port}/docs", timeout=30).status_code == 404


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}
