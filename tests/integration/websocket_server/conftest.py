"""A websocket-server on real engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.edge import Edge, running_edge


@pytest.fixture
async def edge(valkey: str, tmp_path: Path) -> AsyncIterator[Edge]:
    """A server with the usual settings."""
    async with running_edge(valkey, tmp_path) as running:
        yield running
