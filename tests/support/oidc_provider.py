"""The certified `oidc-provider` of npm on loopback, installed once for all runs by its lock, ended with its test.

It needs `node` and `npm`. What is installed stays in pytest's cache, by the lock's hash.
"""

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2

from tests.support.server import LOOPBACK, free_port
from tests.support.services import ServiceUnavailable
from tests.support.waiting import eventually

_FOLDER = Path(__file__).parent / "oidc"
_INSTALL_WITHIN_S = 300.0
_READY_WITHIN_S = 60.0
_END_WITHIN_S = 15.0


@dataclass(frozen=True)
class CertifiedProvider:
    """A provider that runs. Its clients are `gateway`, with `CLIENT_SECRET`, and `public`, without one."""

    issuer: str

    async def logs_in(self, subject: str, email: str, *groups: str, **claims: Any) -> None:
        """Whom it logs in from now on, where a browser is not logged in there already."""
        account = {"sub": subject, "email": email, "email_verified": True, "groups": groups, **claims}
        await self._name(account)

    async def refuses(self) -> None:
        """It lets nobody in from now on."""
        await self._name({"refuses": True})

    async def _name(self, account: dict[str, Any]) -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.put(f"{self.issuer}/account", json=account)
            assert answer.status_code == 204, answer.text


def installed_provider(cache: Path) -> Path:
    """The folder with the provider and all that it needs. Raises `ServiceUnavailable` where it cannot be had."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        raise ServiceUnavailable(f"no OpenID Connect provider for the tests: {' and '.join(missing)} not found")
    lock = (_FOLDER / "package-lock.json").read_bytes()
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for file in _FOLDER.iterdir():
            if not (folder / file.name).exists() or (folder / file.name).read_bytes() != file.read_bytes():
                shutil.copyfile(file, folder / file.name)
        if not (folder / ".installed").exists():
            _install(folder)
            (folder / ".installed").touch()
    return folder


@asynccontextmanager
async def running_provider(folder: Path, redirect_uri: str) -> AsyncIterator[CertifiedProvider]:
    """It runs for as long as the context. It listens on a free port of loopback."""
    port = free_port()
    command = ["node", "provider.mjs", str(port), redirect_uri]
    with (folder / f"{port}.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            await eventually(
                lambda: process.poll() is not None or "listening" in _text(log), within_s=_READY_WITHIN_S, poll_s=0.02
            )
            assert process.poll() is None, _text(log)
            yield CertifiedProvider(f"http://{LOOPBACK}:{port}")
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            process.wait(_END_WITHIN_S)
            Path(log.name).unlink()


def _install(folder: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_WITHIN_S, check=False)
    if done.returncode != 0:
        raise ServiceUnavailable(f"no OpenID Connect provider for the tests: npm ci failed: {done.stderr[-500:]}")


def _text(log: IO[str]) -> str:
    return Path(log.name).read_text("utf-8", errors="replace")
