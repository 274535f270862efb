"""A running server as `tidegate check` finds it, in production, with nothing wrong; and ways to break it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tidegate.check.running import OWN_ID
from tidegate.check.structure import REFUSALS
from tidegate.check.subject import Answer, Live, Subject

ORIGIN = "https://app.example.com"
ROOT_PID = 100
HANDLED = ("Exception", "HTTPException", "RequestValidationError", "ResponseValidationError", "TidegateError")
_TIMEOUTS = {"connect_s": 5, "write_s": 10, "headers_s": 60, "first_token_s": 60, "idle_s": 30, "total_s": 600}
ROW = {"request_id": "r", "outcome": "completed", "status": 200, "streamed": True, "ttft_ms": 5, "duration_ms": 90}
CUT = ROW | {"outcome": "client_disconnected", "status": 499, "ended_at": "2026-11-22T21:00:00.040Z"}


@dataclass
class Broken:
    """A subject in the making. What it is given here is what `subject` holds."""

    root: dict[str, Any]
    workers: list[dict[str, Any]]
    seen: dict[str, Answer]
    countdown: list[Answer]
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def worker(self) -> dict[str, Any]:
        """One of them."""
        return self.workers[-1]

    def everywhere(self, change: Callable[[dict[str, Any]], object]) -> None:
        for worker in self.workers:
            change(worker)

    def subject(self) -> Subject:
        given: dict[str, Any] = {"cpus": 1, "skipped_live": "name a key with --key-file"} | self.others
        return Subject(self.root, tuple(self.workers), seen=self.seen, countdown=tuple(self.countdown), **given)


def nothing_wrong() -> Broken:
    workers = [_facts(pid) for pid in (101, 102, 103)]
    root = {
        "pid": ROOT_PID,
        "version": "1.0.0",
        "generation": 1,
        "workers_expected": 3,
        "stop_within_s": 53,
        "url": "http://127.0.0.1:8000",
        "workers": [{"pid": worker["pid"], "generation": 1, "state": "ready"} for worker in workers],
    }
    return Broken(root, workers, _seen(), [_tried(left) for left in (299, 298, 297, 296)])


def live(**fields: Any) -> Live:
    """A stream that came as it was made, and one that was hung up on and written down."""
    whole: dict[str, Any] = {
        "status": 200,
        "content_type": "text/event-stream; charset=utf-8",
        "pieces": 400,
        "first_s": 0.05,
        "total_s": 0.5,
        "is_done": True,
        "hung_up_id": "tidegate-check.1",
        "hung_up_at": datetime(2026, 11, 22, 21, tzinfo=UTC).timestamp(),
        "entries": (CUT,),
    }
    return Live("echo", **whole | fields)


def answered(status: int = 200, body: Any = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"x-request-id": "made-by-it"} | named, body, took_s=0.01)


def _tried(left: int) -> Answer:
    return answered(204, ratelimit=f'"logout-address";r={left};t=900')


def _seen() -> dict[str, Answer]:
    seen = {name: refused(status, code) for name, (status, code) in REFUSALS.items()}
    seen |= {f"out_of_range_{what}": refused(422, "validation_error") for what in ("text", "number", "kind")}
    seen |= {"forged_token": refused(401, "invalid_token"), "forged_address": _tried(295)}
    seen |= {"cors_get_evil": answered(), "cors_preflight_evil": refused(400, "invalid_request")}
    seen |= {"cors_preflight_own": answered(access_control_allow_origin=ORIGIN)}
    seen |= {"id own": answered(x_request_id=OWN_ID), "id none": answered(), "id hostile": answered()}
    seen |= {f"docs {path}": refused(404, "not_found") for path in ("/docs", "/redoc", "/openapi.json")}
    checks = {name: {"status": "ok", "latency_ms": 1.5} for name in ("database", "cache")}
    seen |= {"health /health": answered(200, {"status": "ok", "degraded": [], "checks": checks})}
    return seen | {"health /health/live": answered(), "health /health/ready": answered()}


def refused(status: int, code: str) -> Answer:
    body = {"type": "error", "error": {"type": "t", "code": code, "message": "m"}, "request_id": "made-by-it"}
    return answered(status, body)


def _facts(pid: int) -> dict[str, Any]:
    # Each has its own, to be broken alone.
    return copy.deepcopy({"pid": pid, "parent_pid": 99, **_OF_MADE, **_OF_STORES, **_OF_ROAD, **_OF_RUNNING})


_OF_MADE = {
    "version": "1.0.0",
    "environment": "production",
    "settings": {
        "digests": {"auth": "a", "http": "b"},
        "is_typed": True,
        "is_frozen": True,
        "forbids_unknown": True,
        "unknown": [],
    },
    "routes": {
        "routes": 60,
        "routers": 10,
        "loose": [],
        "handlers": list(HANDLED),
        "dependencies": 400,
        "overridden": [],
        "without_caller": [],
        "fields": 80,
        "unconstrained": [],
        "bounded_by_body": ["body.messages"],
        "docs": [],
        "streaming": ["POST /v1/chat/completions"],
        "limited": {name: {"account": 10, "address": 30} for name in ("login", "refresh", "forgot", "reset")},
    },
}
_OF_STORES = {
    "database": {
        "dialect": "postgresql",
        "driver": "asyncpg",
        "is_async": True,
        "pool": {"size": 5, "overflow": 5},
        "pooler": None,
        "max_replicas": 1,
        "max_connections": 100,
        "reserved": 3,
        "in_use": 7,
        "revision": "0006",
        "missing": [],
        "newer": None,
        "clock_ahead_s": 0.001,
    },
    "redis": {"configured": True, "run_id": "r1", "policy": "noeviction", "clock_ahead_s": -0.002},
    "ledger": {"latest": [ROW, CUT]},
    "limiter": {"shared": True, "run_id": "r1", "is_away": False, "workers_seen": 3, "judged_alone": 0},
    "caches": {"reports_in_redis": True, "answers_in_redis": True},
}
_OF_ROAD = {
    "requests": 0,
    "upstreams": {
        "one": {
            "provider": "openai",
            "slots": 64,
            "queue_length": 1000,
            "queue_deadline_s": 10,
            "in_use": 2,
            "waiting": 0,
            "timeouts": _TIMEOUTS,
        }
    },
    "free_models": [],
    "client": {"clients": 1, "providers": 1, "is_pooled": True, "is_closed": False},
}
_OF_RUNNING = {
    "tokens": {
        "keys": [{"kid": "1", "bits": 256, "weakness": None}],
        "are_from_settings": True,
        "algorithm": "HS256",
        "access_token_s": 900,
        "sign_in_days": 30,
    },
    "http": {"origins": [ORIGIN], "trusted_proxies": ["10.0.0.0/8"], "max_body_bytes": 20971520},
    "drain": {"drain_s": 30, "linger_s": 0},
    "workers_setting": "auto",
    "loop": {"last_ms": 0.1, "worst_ms": 12.0, "worst_ever_ms": 40.0, "stall_log_s": 1},
    "logs": {"form": "json", "redacts": True, "handlers": 1, "loggers_with_their_own": [], "process": "worker"},
}
