"""What the root did, in the audit trail: written by a worker, since the root has no database."""

from tidegate.audit.trail import Actor, Event, Subject, write
from tidegate.server.control import Message
from tidegate.settings import Settings
from tidegate.storage.database import Database
from tidegate.storage.database_login import database_login


async def record_reload(settings: Settings, told: Message) -> None:
    """One `settings.reloaded`, on a connection of its own: a reload is rare, and the pool is the requests'.

    `by` is the system user's name where a command asked; `signal` is what came otherwise.
    """
    actor = Actor("command", name=told["by"]) if told["by"] else Actor("system", name=told["signal"])
    subject = Subject("catalogue", told["version"], told["name"])
    database = await Database.open(
        settings.database_url,
        pool_size=1,
        max_overflow=0,
        login=database_login(settings.database),
        pooler=settings.database.pooler,
    )
    try:
        await write(database, actor, Event("settings.reloaded", subject=subject, details=told["details"]))
    finally:
        await database.aclose()
