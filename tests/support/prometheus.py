"""A real Prometheus, and promtool, from Debian's packages.

async with Prometheus(tmp_path, targets=["127.0.0.1:9000"], rules=rules, token=key) as prometheus:
    found = await prometheus.query("up")
"""

import asyncio
import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import yaml

from tests.support.debian import debian_program
from tests.support.server import LOOPBACK, free_port
from tests.support.waiting import NeverHappened, eventually

_READY_WITHIN_S = 60.0
_SCRAPE_EVERY = "1s"

Json = dict[str, Any]


class Prometheus:
    """One that scrapes `targets` each second as the job `tidegate`, until it is left. `token` is a bearer's."""

    def __init__(self, folder: Path, *, targets: Sequence[str], rules: Path, token: str | None = None) -> None:
        self._folder = folder
        self._port = free_port()
        self._running: subprocess.Popen[bytes] | None = None
        self._client = httpx2.AsyncClient(base_url=f"http://{LOOPBACK}:{self._port}", timeout=30, trust_env=False)
        job: Json = {"job_name": "tidegate", "static_configs": [{"targets": list(targets)}]}
        if token is not None:
            job["authorization"] = {"credentials": token}
        self._configuration = {
            "global": {"scrape_interval": _SCRAPE_EVERY, "evaluation_interval": _SCRAPE_EVERY},
            "rule_files": [str(rules)],
            "scrape_configs": [job],
        }

    async def query(self, expression: str) -> list[Json]:
        """What an expression is now: series with their `metric` and `value`. Raises where Prometheus refuses it."""
        answer = await self._client.get("/api/v1/query", params={"query": expression})
        told = answer.json()
        assert told["status"] == "success", f"{expression}: {told}"
        found: list[Json] = told["data"]["result"]
        return found

    async def value(self, expression: str) -> float:
        """The one value of an expression; 0 where it has none."""
        found = await self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0

    async def rules(self) -> list[Json]:
        """Every rule, with its `health` and `lastError`."""
        answer = await self._client.get("/api/v1/rules")
        return [rule for group in answer.json()["data"]["groups"] for rule in group["rules"]]

    async def __aenter__(self) -> Self:
        program = debian_program("prometheus", packages=("prometheus",))
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "prometheus.yml"
        configuration.write_text(yaml.safe_dump(self._configuration))
        with (self._folder / "prometheus.log").open("wb") as log:
            self._running = subprocess.Popen(
                [
                    program.path,
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}",
                    f"--web.listen-address={LOOPBACK}:{self._port}",
                ],
                env=dict(program.environ),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            await eventually(self._is_ready, within_s=_READY_WITHIN_S, poll_s=0.1)
        except NeverHappened:
            await self.__aexit__(None, None, None)
            raise AssertionError((self._folder / "prometheus.log").read_text()) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()
        if self._running is not None:
            self._running.terminate()
            try:
                await asyncio.to_thread(self._running.wait, 20)
            except subprocess.TimeoutExpired:
                self._running.kill()
                await asyncio.to_thread(self._running.wait)

    async def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return (await self._client.get("/-/ready")).status_code == 200
        return False


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What Prometheus' own checker says."""
    program = debian_program("promtool", packages=("prometheus",))
    return subprocess.run(
        [program.path, *arguments], env=dict(program.environ), check=False, capture_output=True, text=True, timeout=60
    )
