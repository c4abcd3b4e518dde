"""Fixtures of the end-to-end tests: a whole system in either mode, with a scripted HTTP model."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from tests.support.model_server import ModelServer

from duologue.bench.distributed import DistributedSystem, SharedEngines, distributed_system
from duologue.bench.process import free_port
from duologue.bench.system import EmbeddedSystem, System, embedded_system
from duologue.cluster.kafka import KafkaServer
from duologue.engines.child import child_process

StartSystem = Callable[[Mapping[str, str]], AbstractAsyncContextManager[System]]


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
    """Settings of the system beside the model's; a module overrides this fixture to change them."""
    return {"USER_RATE_LIMIT_MAX_REQUESTS": "10000", "TOKEN_RATE_LIMIT_MAX_REQUESTS": "10000"}


@pytest.fixture
def shared_engines(kafka: KafkaServer, valkey: str, postgres_url: str) -> Iterator[SharedEngines]:
    """The session's engines with nothing on them: topics of the test's own, a clean Valkey, an empty database."""
    engines = SharedEngines(kafka.bootstrap_servers, valkey, postgres_url, kafka_topic_prefix=f"{uuid.uuid4()}-")
    yield engines
    _delete_topics(engines)


def _delete_topics(engines: SharedEngines) -> None:
    """A broker that kept every test's topics would have thousands of partitions at the end."""
    admin = AdminClient({"bootstrap.servers": engines.kafka_bootstrap_servers})
    topics = admin.list_topics(timeout=10).topics
    if ours := [topic for topic in topics if topic.startswith(engines.kafka_topic_prefix)]:
        for deleted in admin.delete_topics(ours).values():
            deleted.result(10)


@pytest.fixture
def start_embedded(data_dir: Path) -> StartSystem:
    """Starts `duologue up` with given settings."""
    return lambda settings: embedded_system(data_dir, settings)


@pytest.fixture
def start_distributed(shared_engines: SharedEngines, tmp_path: Path) -> StartSystem:
    """Starts every role as processes behind nginx, with given settings."""
    return lambda settings: distributed_system(tmp_path, shared_engines, {"KAFKA_PARTITIONS": "4", **settings})


@pytest.fixture(params=["embedded", "distributed"])
def start_system(request: pytest.FixtureRequest) -> StartSystem:
    """Starts a system in the mode that the test runs in."""
    start: StartSystem = request.getfixturevalue(f"start_{request.param}")
    return start


@pytest.fixture
async def system(
    start_system: StartSystem, model_server: ModelServer, system_settings: dict[str, str]
) -> AsyncIterator[System]:
    """A running system, ready, with the model server as its provider. It may be killed and started again."""
    async with start_system({"OPENAI_BASE_URL": model_server.base_url, **system_settings}) as system:
        yield system


@pytest.fixture
async def embedded(
    data_dir: Path, model_server: ModelServer, system_settings: dict[str, str]
) -> AsyncIterator[EmbeddedSystem]:
    """The same, for what only the embedded mode has."""
    async with embedded_system(data_dir, {"OPENAI_BASE_URL": model_server.base_url, **system_settings}) as system:
        yield system


@pytest.fixture
async def distributed(
    shared_engines: SharedEngines, tmp_path: Path, model_server: ModelServer, system_settings: dict[str, str]
) -> AsyncIterator[DistributedSystem]:
    """The same, for what only many processes can show."""
    settings = {"OPENAI_BASE_URL": model_server.base_url, "KAFKA_PARTITIONS": "4", **system_settings}
    async with distributed_system(tmp_path, shared_engines, settings) as system:
        yield system
