"""A client that hangs up, in every phase, by FIN and by RST: four things are given back within two seconds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.support.behaviours import flood, silent, stalled
from tests.support.blackhole import BlackHole
from tests.support.client import RawClient
from tests.support.road import Road, catalogue_of, content, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

HANG_UP_WITHIN_S = 2.0


async def test_smoke(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_road(tmp_path, catalogue_of({"plain": {"base_url": upstream.base_url}}, {"m": "plain/m"})) as road:
        reply = await road.caller.chat("r1")
        print(reply)
        print(await road.caller.entry("r1"))
        await road.at_rest()
