"""Ledger entries for tests: one that says as little as it may, and one that says all."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.ledger.entry import Attempt, Entry, new_entry_id

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def an_attempt(n: int = 1, **fields: Any) -> Attempt:
    """An attempt that says what it must, and `fields`."""
    said = {"upstream": "local", "model": "smollm2", "outcome": "completed", "started_at": NOON, "ended_at": NOON}
    return Attempt(n=n, **{**said, **fields})


def an_entry(**fields: Any) -> Entry:
    """An entry that says what it must, and `fields`."""
    said: dict[str, Any] = dict.fromkeys(Entry.__struct_fields__)
    said |= {name: 0 for name in said if name.endswith("_tokens")}
    said |= {"entry_id": new_entry_id(), "schema": 1, "workspace_id": DEFAULT_WORKSPACE_ID, "request_id": "r-1"}
    said |= {"protocol": "chat", "model": "smollm2", "streamed": False, "outcome": "completed", "usage_source": "none"}
    said |= {"tags": {}, "units": {}, "attempts": [], "duration_ms": 0, "started_at": NOON, "ended_at": NOON}
    return Entry(**{**said, **fields})


def a_full_entry(**fields: Any) -> Entry:
    """An entry that says everything, with two attempts, and `fields`."""
    usage = {
        "input_tokens": 2**40,
        "cached_input_tokens": 1,
        "cache_write_tokens": 2,
        "cache_write_1h_tokens": 3,
        "output_tokens": 4,
        "reasoning_tokens": 5,
        "usage_source": "provider",
        "cost": Decimal("1.000000000001"),
        "price_version": "genai-prices 0.2.3",
    }
    said = {
        "key_id": new_entry_id(),
        "user_id": new_entry_id(),
        "end_user": "Zoë 🌊",
        "session_id": "s",
        "tags": {"team": "a\"'\\b", "": "empty"},
        "upstream": "local",
        "streamed": True,
        "outcome": "client_disconnected",
        "status": 499,
        "error_code": "upstream_error",
        "finish_reason": "stop",
        "cache": "miss",
        "units": {"images": 2},
        "reserved_cost": Decimal("1.5"),
        "client_address": "2001:db8::1",
        "user_agent": "curl/8\n",
        "queue_ms": 0,
        "ttft_ms": 1,
        "duration_ms": 2**33,
        "started_at": NOON + timedelta(microseconds=1),
        "ended_at": NOON + timedelta(days=50),
        "attempts": [
            an_attempt(1, outcome="upstream_failed", status=500),
            an_attempt(2, upstream_request_id="req_1", status=200, **usage),
        ],
    }
    return an_entry(**{**usage, **said, **fields})
