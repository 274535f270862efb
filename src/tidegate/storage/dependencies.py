"""The database as routes ask for it. A session ends before the response begins: none is held while one streams."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from tidegate.storage.database import Database


def get_database(request: Request) -> Database:
    database: Database = request.state.database
    return database


DatabaseDep = Annotated[Database, Depends(get_database)]


async def get_session(database: DatabaseDep) -> AsyncIterator[AsyncSession]:
    """A session whose work is committed when the endpoint returns, and rolled back when it raises."""
    async with database.transaction() as session:
        yield session


async def get_reading_session(database: DatabaseDep) -> AsyncIterator[AsyncSession]:
    """A session that changes nothing, and so waits for no writer."""
    async with database.session() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
ReadingSessionDep = Annotated[AsyncSession, Depends(get_reading_session, scope="function")]
