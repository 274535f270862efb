"""A process of its own that writes a journal: to be killed in the middle, or to have its files bounded.

What it prints was true when it was printed: a line follows the call that it tells of.
"""

import asyncio
import json
import resource
import sys
from pathlib import Path

from tests.unit.samples import Store, an_open_entry, begun, ended
from tidegate.errors import Unavailable
from tidegate.ledger.drain import Drain
from tidegate.ledger.entry import Entry, OpenEntry, Tokens, Usage
from tidegate.ledger.journal import Journal, Progress, attempt_row

USAGE = Usage(Tokens(input=3, output=7), "provider")


def tell(*said: object) -> None:
    sys.stdout.write(" ".join(map(str, said)) + "\n")
    sys.stdout.flush()


def settled(opened: OpenEntry) -> Entry:
    record = begun(opened.entry_id)
    return ended(opened, attempt_row(record, outcome="completed", usage=USAGE, ended_at=record.started_at))


def write_until_killed(root: Path) -> None:
    """Keeps five requests open at a time, and begins and ends them as fast as it can."""
    journal = Journal.create(root, segment_bytes=4096)
    opened: list[OpenEntry] = []
    while True:
        opened.append(an_open_entry())
        journal.open(opened[-1])
        tell("opened", opened[-1].entry_id)
        journal.begin_attempt(begun(opened[-1].entry_id))
        tell("begun", opened[-1].entry_id)
        journal.progress(Progress(opened[-1].entry_id, 7))
        if len(opened) > 5:
            first = opened.pop(0)
            journal.settle(settled(first))
            tell("settled", first.entry_id)


async def write_into_a_full_disk(root: Path) -> None:
    """No file may grow past 6,000 bytes: the kernel refuses what is more, as a full disk does."""
    journal = Journal.create(root)
    store = Store()
    drain = Drain(journal, store)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    opened: list[OpenEntry] = []
    refusal: Unavailable | None = None
    while refusal is None:
        entry = an_open_entry(end_user="x" * 200)
        try:
            journal.open(entry)
        except Unavailable as error:
            refusal = error
        else:
            opened.append(entry)
    attempt_refused = _refuses_attempts(journal, opened[0])
    journal.progress(Progress(opened[0].entry_id, 1))
    for entry in opened:
        journal.settle(settled(entry))
    kept = journal.has_unwritten
    lines = [json.loads(line)["record"] for path in root.rglob("*.jsonl") for line in path.read_bytes().splitlines()]
    store.reason = OSError("no database either")
    gave_up = not await drain.finish(0.3)
    store.reason = None
    caught_up = await drain.finish(30)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    after = an_open_entry()
    journal.open(after)
    journal.settle(settled(after))
    last = await drain.finish(30)
    journal.close(drained=last)
    tell(
        json.dumps(
            {
                "opened": [str(entry.entry_id) for entry in [*opened, after]],
                "open_at_the_end": journal.open_entries,
                "refusal": [refusal.http_status, refusal.http_code, refusal.message],
                "attempt_refused": attempt_refused,
                "kept": kept,
                "lines": lines,
                "gave_up": gave_up,
                "caught_up": caught_up,
                "stored": {str(entry_id): count for entry_id, count in store.arrivals.items()},
                "journals": [path.name for path in root.iterdir()],
            }
        )
    )


def _refuses_attempts(journal: Journal, opened: OpenEntry) -> bool:
    try:
        # Larger than what an open record found no room for: a smaller one might still fit.
        journal.begin_attempt(begun(opened.entry_id, model="m" * 400))
    except Unavailable:
        return True
    return False


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        write_until_killed(Path(sys.argv[2]))
    else:
        asyncio.run(write_into_a_full_disk(Path(sys.argv[2])))
