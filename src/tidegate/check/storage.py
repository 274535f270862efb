"""Items 2.1 to 2.5: database, pools, schema, loop and caches, each as the workers have it now."""

from tidegate.check.structure import named, some
from tidegate.check.subject import Subject
from tidegate.check.verdicts import Check, Judged

_DRIVERS = {"postgresql": "asyncpg", "sqlite": "aiosqlite"}
# While a generation replaces another, both run.
_GENERATIONS = 2
LONGEST_LAG_MS = 500.0


def drivers(subject: Subject) -> Judged:
    dialect, driver = subject.one("database", "dialect"), subject.one("database", "driver")
    if _DRIVERS.get(dialect) != driver or not subject.one("database", "is_async"):
        return "fail", f"{dialect} by {driver}, which blocks the loop: use postgresql+asyncpg or sqlite+aiosqlite"
    return "pass", f"{dialect} by {driver}, in the engine of {some(len(subject.workers), 'worker')}"


def pools(subject: Subject) -> Judged:
    if subject.one("database", "dialect") != "postgresql":
        return "not_applicable", "SQLite is a file of this machine: it has no connections to share"
    if (error := _error(subject, "database")) is not None:
        return "unknown", error
    replicas = subject.one("database", "max_replicas")
    pool = subject.one("database", "pool")
    each = pool["size"] + pool["overflow"]
    workers = subject.root["workers_expected"] or len(subject.workers)
    most = replicas * workers * each * _GENERATIONS
    arithmetic = (
        f"{replicas} replicas x {workers} workers x ({pool['size']} + {pool['overflow']}) x {_GENERATIONS} = {most}"
    )
    if subject.one("database", "pooler") is not None:
        told = f"{arithmetic} to the pooler, which cannot be asked: compare its max_client_conn yourself"
        return "partial", told
    database = subject.workers[0]["database"]
    allowed, reserved = database["max_connections"], database["reserved"]
    told = f"{arithmetic} of {allowed} (max_connections) - {reserved} (reserved); {database['in_use']} open now"
    if most > allowed - reserved:
        return "fail", f"{told}: raise max_connections, or lower TIDEGATE_SERVER__WORKERS, and start anew"
    return "pass", told


def migrations(subject: Subject) -> Judged:
    if (error := _error(subject, "database")) is not None:
        return "unknown", error
    database = subject.workers[0]["database"]
    if database["missing"]:
        return "fail", f"at {database['revision']}, behind by {named(database['missing'])}: run tidegate migrate"
    if database["newer"] is not None:
        return "partial", f"at {database['newer']}, a newer version's: finish the deploy, or take it back"
    return "pass", f"alembic_version is {database['revision']}, the head of this version"


def loop(subject: Subject) -> Judged:
    if subject.silent:
        pids = ", ".join(map(str, subject.silent))
        return "fail", f"worker {pids} did not answer the root: its loop is held; its log has the stack that holds it"
    late = [(pid, worst) for pid, worst in subject.each("loop", "worst_ms") if worst > LONGEST_LAG_MS]
    if late:
        pid, worst = max(late, key=lambda each: each[1])
        told = f"worker {pid} was {worst:g} ms late in the last minute, more than {LONGEST_LAG_MS:g}"
        return "fail", f"{told}: its log says by which stack, or that the machine starved it"
    if not all(subject.every("loop", "stall_log_s")):
        return "partial", "no worker logs what holds its loop: TIDEGATE_SERVER__STALL_LOG_S is 0"
    worst = max(subject.every("loop", "worst_ms"))
    return "pass", f"the worst loop of {some(len(subject.workers), 'worker')} was {worst:g} ms late in the last minute"


def caching(subject: Subject) -> Judged:
    redis = subject.one("redis", "configured")
    shared = subject.one("caches")
    if not redis:
        told = "caches are in each process: nothing is shared. Set TIDEGATE_REDIS__URL"
        return ("partial" if len(subject.workers) == 1 else "fail"), told
    if (error := _error(subject, "redis")) is not None:
        return "fail", error
    apart = [name for name, is_there in shared.items() if not is_there]
    if apart:
        return "fail", f"not kept in Redis: {named(apart)}"
    runs = set(subject.every("redis", "run_id"))
    if len(runs) != 1:
        return "fail", f"workers use {len(runs)} different Redis servers"
    return "pass", f"reports and answers of {some(len(subject.workers), 'worker')} are kept in one Redis, by workspace"


def _error(subject: Subject, store: str) -> str | None:
    for pid, facts in subject.each(store):
        if "error" in facts:
            return f"worker {pid} cannot use the {store} ({facts['error']}): see /health and its log"
    return None


CHECKS = (
    Check("2.1", "Async drivers", drivers),
    Check("2.2", "Pool sizing", pools),
    Check("2.3", "Alembic", migrations),
    Check("2.4", "No blocking calls", loop),
    Check("2.5", "Redis caching", caching),
)
