"""Fixtures of the end-to-end tests: `duologue up` as a process of its own, with a scripted HTTP model."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.model_server import ModelServer

from duologue.bench.system import EmbeddedSystem, embedded_system, free_port
from duologue.engines.child import child_process


@pytest.fixture
async def model_server() -> AsyncIterator[ModelServer]:
    """An OpenAI-compatible server: eight words at once, until the test says otherwise. It counts what it is asked."""
    server = ModelServer(free_port())
    argv = (sys.executable, "-m", "duologue.bench.mock_llm", "--port", server.root.rpartition(":")[2], "--record")
    async with child_process(*argv, name="model", stdout=asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            await process.stdout.readline()  # it tells its address once it listens
        yield server


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for a system's data, with a short path."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "data"


@pytest.fixture
def system_settings() -> dict[str, str]:
    """Settings of the embedded system beside the model's; a module overrides this fixture to change them."""
    return {"USER_RATE_LIMIT_MAX_REQUESTS": "10000", "TOKEN_RATE_LIMIT_MAX_REQUESTS": "10000"}


@pytest.fixture
async def embedded(
    model_server: ModelServer, data_dir: Path, system_settings: dict[str, str]
) -> AsyncIterator[EmbeddedSystem]:
    """A running `duologue up`, ready, with the model server as its provider. It may be killed and started again."""
    environment = {"OPENAI_BASE_URL": model_server.base_url, **system_settings}
    async with embedded_system(data_dir, environment) as system:
        yield system
