"""Items 4.1 to 4.5: the road to the models.

Streams are proven live where a key was given, else by what the ledger has; the evidence says which.
"""

import math
from datetime import datetime

from tidegate.check.structure import named, some
from tidegate.check.subject import Facts, Subject
from tidegate.check.verdicts import Check, Judged

_TIMEOUTS = ("connect_s", "write_s", "headers_s", "first_token_s", "idle_s", "total_s")
_HUNG_UP = 499


def streaming(subject: Subject) -> Judged:
    routes = subject.one("routes", "streaming")
    if not routes:
        return "fail", "no inference route streams"
    live = subject.live
    if live is not None:
        if live.problem is not None:
            return "unknown", f"a stream of {live.model!r} could not be had: {live.problem}"
        told = f"{live.pieces} pieces, the first after {_ms(live.first_s)} of {_ms(live.total_s)}"
        if live.status != 200 or not live.content_type.startswith("text/event-stream"):
            return "fail", f"a stream of {live.model!r} was answered {live.status} {live.content_type}"
        if live.pieces < 2 or live.first_s >= live.total_s or not live.is_done:
            return "fail", f"{live.model!r} did not come as it was made: {told}"
        return "pass", f"live: {live.model!r} came in {told}, up to [DONE]"
    latest = _streamed(subject)
    if latest is None:
        return "unknown", f"{some(len(routes), 'route')} made to stream, but the ledger cannot be read"
    early = [row for row in latest if row["ttft_ms"] is not None and row["ttft_ms"] < row["duration_ms"]]
    if not early:
        told = "none of the newest entries shows that a stream comes as it is made"
        return "unknown", f"{told}: {subject.skipped_live}"
    row = early[0]
    told = f"{len(early)} of {len(latest)} newest streams had their first token before their end"
    return "pass", f"read from the ledger: {told} (the last after {row['ttft_ms']} of {row['duration_ms']} ms)"


def concurrency(subject: Subject) -> Judged:
    for name, upstream in subject.upstreams.items():
        slots, length, deadline_s = upstream["slots"], upstream["queue_length"], upstream["queue_deadline_s"]
        if not _is_bound(slots):
            return "fail", f"{name!r} has no cap: set max_concurrency"
        if length is None or length < 0 or not _is_bound(deadline_s):
            return "fail", f"the queue of {name!r} has no bound: set queue = {{ length, deadline_s }}"
    for name in subject.upstreams:
        found = {(facts[name]["slots"], facts[name]["queue_length"]) for facts in subject.every("upstreams")}
        if len(found) != 1:
            return "fail", f"workers cap {name!r} differently: reload the catalogue (tidegate reload)"
    if len(subject.workers) > 1 and not all(subject.every("limiter", "shared")):
        return "fail", "each worker counts slots by itself: set TIDEGATE_REDIS__URL"
    name, upstream = next(iter(subject.upstreams.items()))
    held = sum(facts[name]["in_use"] for facts in subject.every("upstreams"))
    first = f"{name!r}: {held} of {upstream['slots']} slots held, a queue of {upstream['queue_length']}"
    told = f"{first} for {upstream['queue_deadline_s']:g} s"
    return "pass", f"{some(len(subject.upstreams), 'upstream')}, each capped and queued for; {told}"


def client(subject: Subject) -> Judged:
    for pid, facts in subject.each("client"):
        if facts["clients"] != 1:
            return (
                "fail",
                f"worker {pid} has {facts['clients']} HTTP clients for its upstreams: open one in the lifespan",
            )
        if facts["is_closed"] or not facts["is_pooled"]:
            return "fail", f"worker {pid}'s HTTP client is closed, or keeps no connections"
    return "pass", f"one pooled AsyncClient a process in {some(len(subject.workers), 'worker')}, opened by the lifespan"


def timeouts(subject: Subject) -> Judged:
    for name, upstream in subject.upstreams.items():
        if unset := [each for each in _TIMEOUTS if not _is_bound(upstream["timeouts"].get(each))]:
            return "fail", f"{name!r} does not bound {named(unset)}: set it in timeouts"
    name, upstream = next(iter(subject.upstreams.items()))
    shown = ", ".join(f"{each.removesuffix('_s')} {upstream['timeouts'][each]:g}" for each in _TIMEOUTS)
    return "pass", f"{some(len(subject.upstreams), 'upstream')}, six bounds each; {name!r}: {shown} s"


def termination(subject: Subject) -> Judged:
    live = subject.live
    if live is not None:
        if live.problem is not None:
            return "unknown", f"a hang-up on {live.model!r} could not be tried: {live.problem}"
        outcomes = [f"{row['outcome']} {row['status']}" for row in live.entries]
        if outcomes != [f"client_disconnected {_HUNG_UP}"]:
            told = named(outcomes) if outcomes else "none"
            return (
                "fail",
                f"hung up on {live.model!r}: the entries are to be one client_disconnected 499; there are: {told}",
            )
        if live.slots_left:
            return "fail", f"hung up on {live.model!r}: {live.slots_left} slots are still held"
        after_s = datetime.fromisoformat(live.entries[0]["ended_at"]).timestamp() - live.hung_up_at
        told = f"live: hung up on {live.model!r} at its first token; settled after {_ms(max(0.0, after_s))}"
        return "pass", f"{told} in one entry, 499, and no slot held"
    latest = _streamed(subject)
    if latest is None:
        return "unknown", "the ledger cannot be read"
    cut = [row for row in latest if row["outcome"] == "client_disconnected"]
    if wrong := [row for row in cut if row["status"] != _HUNG_UP]:
        return "fail", f"a hang-up was written down as {wrong[0]['status']}, not {_HUNG_UP}"
    if not cut:
        return "unknown", f"nobody hung up among the newest entries: {subject.skipped_live}"
    return (
        "pass",
        f"read from the ledger: {len(cut)} of {len(latest)} newest streams were hung up on, each one entry with 499",
    )


def _streamed(subject: Subject) -> list[Facts] | None:
    ledger = next((facts for facts in subject.every("ledger") if "latest" in facts), None)
    return None if ledger is None else [row for row in ledger["latest"] if row["streamed"]]


def _is_bound(value: float | None) -> bool:
    return value is not None and 0 < value < math.inf


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


CHECKS = (
    Check("4.1", "StreamingResponse", streaming),
    Check("4.2", "Capped concurrency", concurrency),
    Check("4.3", "Pooled HTTP client", client),
    Check("4.4", "Timeouts", timeouts),
    Check("4.5", "Stream termination", termination),
)
