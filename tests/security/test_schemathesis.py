"""The whole API against its own OpenAPI document, by schemathesis with all its checks: as nobody and as everybody.

No 5xx, no status that is not documented, no answer that breaks its schema, nothing taken that the schema refuses, no
route that needs credentials and does without. It is a fixed run, the same each time. A larger one, of as many random
examples an operation as named, with every phase for everybody:

    TIDEGATE_FUZZ_EXAMPLES=100 TIDEGATE_FUZZ_SEED=1 pytest tests/security/test_schemathesis.py --timeout=3600
"""

import asyncio
from pathlib import Path

import pytest

from tests.security.fuzzed_api import Excluded, FuzzedApi, Run, fuzz

_REFUSED = ("400", "401", "403", "404", "405", "406", "409", "415", "422", "428", "429", "431", "5xx")
_TAKEN = ("2xx", "3xx", "401", "403", "404", "409", "429", "5xx")

EXCLUDED = (
    Excluded(
        "object_level_authorization",
        "It takes a file of several people's credentials; whose things one sees is for the suite of other workspaces.",
    ),
    Excluded(
        "positive_data_acceptance",
        "Whether a password is guessed soon, and whether a token or a password is the right one, is in no schema.",
        (
            "POST /api/users",
            "POST /auth/email",
            "POST /auth/email/confirm",
            "POST /auth/invitations/accept",
            "POST /auth/password",
            "POST /auth/password/reset",
            "POST /auth/second-factor",
            "POST /auth/second-factor/confirm",
            "POST /auth/second-factor/recovery-codes",
            "DELETE /auth/second-factor",
            "POST /auth/logout/everywhere",
            "DELETE /auth/sign-ins/{sign_in_id}",
        ),
    ),
    Excluded(
        "negative_data_rejection",
        "What is over a field's length may be over that of all headers, which the server answers with 431.",
        statuses=_REFUSED,
    ),
    Excluded(
        "positive_data_acceptance",
        "A schema's e-mail addresses are also of domains that are reserved (`.test`), whose mail goes nowhere.",
        (
            "GET /api/invitations",
            "GET /api/users",
            "POST /api/invitations",
            "POST /auth/login",
            "POST /auth/page/login",
            "POST /auth/password/forgot",
        ),
    ),
    Excluded(
        "positive_data_acceptance",
        "A path with characters that do not print is refused before any route is asked.",
        ("GET /v1/models/{model_id}",),
        (*_TAKEN, "400"),
    ),
    Excluded(
        "positive_data_acceptance",
        "What fits is said by several fields together: a meter with its window and amount, a scope with its subject.",
        ("POST /api/limits", "PATCH /api/limits/{limit_id}", "PUT /api/limits/key-policies"),
    ),
    Excluded(
        "positive_data_acceptance",
        "No schema knows what time it is, which addresses there are, or that 999999d is longer than a year.",
        ("POST /api/keys", "PATCH /api/keys/{key_id}", "POST /api/keys/{key_id}/rotate"),
    ),
    Excluded(
        "positive_data_acceptance",
        "A moment is one of three forms, no pattern knows the days of a month, and none is before 1970.",
        ("GET /api/audit", "GET /api/requests", "GET /api/usage"),
    ),
    Excluded(
        "positive_data_acceptance",
        "A deadline of a millisecond is valid, and passes; JSON Schema takes 5.0 for a whole number, and we do not.",
        ("POST /v1/chat/completions",),
        (*_TAKEN, "400", "408"),
    ),
    Excluded(
        "unsupported_method",
        "`key-policies` stands where an id of a limit may: as an id it is a 422, not a 405.",
        ("GET /api/limits/key-policies", "PUT /api/limits/key-policies"),
    ),
    Excluded(
        "allow_header_conformance",
        "For the same reason the methods of a limit are allowed there too.",
        ("GET /api/limits/key-policies", "PUT /api/limits/key-policies"),
    ),
)

RUNS = [
    # Each field's limits and wrong forms, once for all: whose request it is makes no difference to them.
    Run(whose="admin", examples=1, phases=("coverage",), excluded=EXCLUDED),
    Run(whose=None, examples=1, phases=("fuzzing",), excluded=EXCLUDED),
    Run(whose="member", examples=1, phases=("fuzzing", "stateful"), excluded=EXCLUDED),
    Run(whose="keeper", examples=1, phases=("fuzzing", "stateful"), excluded=EXCLUDED),
]


# Else a run might have found nothing because it got nowhere.
_SEEN = {
    "admin": [("POST /v1/chat/completions", 200), ("POST /api/keys", 201), ("DELETE /api/keys/{key_id}", 204)],
    "member": [("GET /auth/me", 200), ("GET /api/audit", 403), ("POST /api/users", 403)],
    "keeper": [("GET /auth/me", 200), ("GET /api/audit", 200), ("GET /auth/sign-ins", 403)],
    None: [("GET /auth/me", 401), ("GET /health", 200), ("GET /api/keys", 401)],
}


@pytest.mark.parametrize("run", RUNS, ids=[run.whose or "nobody" for run in RUNS])
async def test_every_answer_is_as_the_document_says(run: Run, sqlite_url: str, tmp_path: Path) -> None:
    async with FuzzedApi.open(sqlite_url, tmp_path) as api:
        findings = await asyncio.to_thread(fuzz, api, run)
    assert not findings.faults, findings.told()
    assert not findings.errors, findings.told()
    for operation, status in _SEEN[run.whose]:
        assert status in findings.answered(operation), (operation, sorted(findings.answered(operation)))
