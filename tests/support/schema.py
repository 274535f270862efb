"""An empty database brought to head by Alembic, at a price that every test can pay."""

import asyncio
import functools
import tempfile
from pathlib import Path

from sqlalchemy.engine import make_url

from tidegate.storage.migrate import migrate


async def bring_to_head(url: str) -> None:
    """A SQLite file that is not there yet becomes a copy of one that was migrated; all else is migrated."""
    location = make_url(url)
    if location.get_backend_name() == "sqlite" and location.database and not (file := Path(location.database)).exists():
        file.write_bytes(await asyncio.to_thread(_file_at_head))
    else:
        await migrate(url)


@functools.cache
def _file_at_head() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "head.db"
        asyncio.run(migrate(f"sqlite+aiosqlite:///{file}"))
        assert list(Path(folder).iterdir()) == [file], "what is in the write-ahead log would be missing"
        return file.read_bytes()
