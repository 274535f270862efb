"""The gateway that the attacks of a module are made on, in a process of its own; with it go what it calls."""

from collections.abc import AsyncIterator

import pytest

from tests.security.attacked import Attacked, plan_for
from tests.support.smtp import MailServer, mail_server
from tests.support.upstream import ScriptedUpstream


@pytest.fixture(scope="module")
async def mail() -> AsyncIterator[MailServer]:
    async with mail_server() as server:
        yield server


@pytest.fixture(scope="module")
async def models() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def attacked(
    models: ScriptedUpstream, mail: MailServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Attacked]:
    async with Attacked.open(tmp_path_factory.mktemp("attacked"), plan_for(models, mail)) as attacked:
        yield attacked
