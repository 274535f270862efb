"""Looking for secrets in everything that a gateway printed, answered or stored."""

import base64
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.asyncio import Redis
from sqlalchemy import MetaData, select, text
from sqlalchemy.ext.asyncio import create_async_engine


def forms_of(secret: str) -> tuple[bytes, ...]:
    """How a secret may stand somewhere: as it is, in hex, in base64, in a URL."""
    raw = secret.encode()
    encoded = base64.b64encode(raw).rstrip(b"=")
    return tuple(dict.fromkeys((raw, raw.hex().encode(), encoded, quote(secret, safe="").encode())))


def found_in(text: bytes, secrets: Iterable[str]) -> set[str]:
    return {secret for secret in secrets if any(form in text for form in forms_of(secret))}


def files_under(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, whole: databases, journals, logs. A file may go while it is looked for."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                yield path.relative_to(folder).as_posix(), path.read_bytes()
            except FileNotFoundError:
                continue


async def rows_of(url: str) -> AsyncIterator[tuple[str, bytes]]:
    """Every row of every table, as text; bytes as they are."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            tables = MetaData()
            await connection.run_sync(tables.reflect)
            for table in tables.sorted_tables:
                for row in await connection.execute(select(table)):
                    yield table.name, b" ".join(_plain(value) for value in row)
    finally:
        await engine.dispose()


async def drop_table(url: str, table: str) -> None:
    """Breaks a gateway at its root: whatever asks for this table fails in a way that nobody foresaw."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP TABLE {table}{'' if url.startswith('sqlite') else ' CASCADE'}"))
    finally:
        await engine.dispose()


async def keys_of(url: str, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
    """Every key of Redis that holds the prefix, with what it holds."""
    redis = Redis.from_url(url)
    try:
        async for key in redis.scan_iter(match=f"*{prefix}*", count=1000):
            yield key.decode("utf-8", "replace"), key + b" " + _plain(await _value(redis, key))
    finally:
        await redis.aclose()


async def _value(redis: Redis, key: bytes) -> Any:
    kind = await redis.type(key)
    match kind.decode() if isinstance(kind, bytes) else kind:
        case "string":
            return await redis.get(key)
        case "hash":
            return await redis.hgetall(key)
        case "list":
            return await redis.lrange(key, 0, -1)
        case "set":
            return list(await redis.smembers(key))
        case "zset":
            return await redis.zrange(key, 0, -1)
        case "stream":
            return await redis.xrange(key)
        case "none":
            return None
    raise AssertionError(f"there is no way to read a key of type {kind!r}")


def _plain(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, dict):
        return b" ".join(_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set)):
        return b" ".join(_plain(part) for part in value)
    return str(value).encode()
