"""What the checks look at: a running server as it was found. Gathered first, judged afterwards.

`root` is the root's report, `workers` are those that told what is so in them, `silent` the pids of those that did not.
`seen` are answers of the server's own port, by name; `live` is what a stream through it did, where there was one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer over HTTP. Header names are lower-case. `error` says why there was none; then `status` is 0."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    took_s: float = 0.0
    error: str | None = None

    @property
    def code(self) -> str | None:
        """Of the error's envelope; None where it is none."""
        body = self.body if isinstance(self.body, dict) else {}
        error = body.get("error")
        if body.get("type") != "error" or not isinstance(error, dict) or not {"type", "message"} <= error.keys():
            return None
        return str(error.get("code"))

    @property
    def told(self) -> str:
        return self.error or str(self.status)


@dataclass(frozen=True, slots=True)
class Live:
    """A streamed request through `model`, and another that hung up at the first content.

    Seconds are from sending it. `entries` are the ledger's for the one that hung up, `slots_left` the slots that were
    held afterwards by no request that runs, `hung_up_at` is in Unix seconds. `problem` says why there is nothing else
    to judge.
    """

    model: str
    request_id: str = ""
    status: int = 0
    content_type: str = ""
    pieces: int = 0
    first_s: float = 0.0
    total_s: float = 0.0
    is_done: bool = False
    hung_up_id: str = ""
    hung_up_at: float = 0.0
    entries: tuple[Facts, ...] = ()
    slots_left: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A running server. `skipped_live` says why there is no `live`."""

    root: Facts
    workers: tuple[Facts, ...]
    silent: tuple[int, ...] = ()
    seen: Mapping[str, Answer] = field(default_factory=dict)
    countdown: tuple[Answer, ...] = ()
    live: Live | None = None
    skipped_live: str = ""
    cpus: int = 1
    strays: tuple[str, ...] = ()
    differs_from_shell: tuple[str, ...] = ()
    address: str = "127.0.0.1"

    @property
    def environment(self) -> str:
        return str(self.workers[0]["environment"]) if self.workers else "unknown"

    @property
    def in_production(self) -> bool:
        return self.environment == "production"

    @property
    def upstreams(self) -> Mapping[str, Facts]:
        """By one worker's catalogue."""
        found: Mapping[str, Facts] = self.workers[0]["upstreams"]
        return found

    def each(self, *path: str) -> list[tuple[int, Any]]:
        """A fact of every worker, with the worker's pid. Raises `KeyError`, also where no worker told anything."""
        if not self.workers:
            raise KeyError("no worker answered")
        return [(int(worker["pid"]), _at(worker, path)) for worker in self.workers]

    def one(self, *path: str) -> Any:
        """A fact that every worker has alike. Raises `Disagreement` where they have not."""
        found = self.each(*path)
        first = found[0][1]
        others = [pid for pid, value in found if value != first]
        if others:
            raise Disagreement(".".join(path), [found[0][0], *others])
        return first

    def every(self, *path: str) -> Iterator[Any]:
        return (value for _, value in self.each(*path))


class Disagreement(ValueError):
    """Workers go by different things. The text names them."""

    def __init__(self, what: str, pids: list[int]) -> None:
        super().__init__(f"workers differ in {what}: {', '.join(map(str, pids))}; replace them (SIGUSR2 to the root)")


def _at(facts: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        facts = facts[name]
    return facts
