"""What takes too long for every run of the tests: `make chaos` runs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from duologue.bench.distributed import OwnEngines, own_engines
from duologue.store.migrate import migrate

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder's tests unless they are asked for; run them in the session's event loop."""
    for item in items:
        if not item.path.is_relative_to(_FOLDER):
            continue
        if not os.environ.get("CHAOS"):
            item.add_marker(pytest.mark.skip(reason="run by `make chaos`"))
        if pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines() -> AsyncIterator[OwnEngines]:
    """Engines of these tests' own."""
    async with own_engines(lasting=False) as own:
        own.postgres.execute("CREATE DATABASE template")
        await asyncio.to_thread(migrate, own.postgres.url("template"))
        yield own
