"""Fixtures of the end-to-end tests: whole systems in either mode, with a scripted HTTP model.

The tests share systems, since starting one takes seconds: they take users of their own (`unique`), and what a test has
ended is started again for the next. So all run in one event loop.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.missing import needs_engine
from tests.support.model_server import ModelServer
from tests.support.standing import Settings, Standing

from duologue.bench.distributed import DistributedSystem, OwnEngines, distributed_system
from duologue.bench.process import free_port
from duologue.bench.system import EmbeddedSystem, System, embedded_system
from duologue.cluster.kafka import KafkaServer
from duologue.cluster.nginx import nginx_program
from duologue.cluster.postgres import PostgresServer
from duologue.cluster.valkey import ValkeyServer
from duologue.engines.child import child_process

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run every test of this folder in the session's event loop, where the shared processes are looked after."""
    for item in items:
        if item.path.is_relative_to(_FOLDER) and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


# The model


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_model_server() -> AsyncIterator[ModelServer]:
    """The model server that tests share. Take `model_server` instead."""
    server = ModelServer(free_port())
    argv = (sys.executable, "-m", "duologue.cli", "mock-llm", "--port", server.root.rpartition(":")[2])
    async with child_process(*argv, name="model", stdout=asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            await process.stdout.readline()  # it tells its address once it listens
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def model_server(session_model_server: ModelServer) -> AsyncIterator[ModelServer]:
    """An OpenAI-compatible server: eight words at once, until the test says otherwise. It counts what it is asked."""
    await session_model_server.begin_anew()
    yield session_model_server
    await session_model_server.configure(tps=0)
    await session_model_server.until(lambda stats: stats["in_flight"] == 0, seconds=40)


# Systems


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for a system's data, with a short path."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "data"


@asynccontextmanager
async def start_embedded(settings: Settings) -> AsyncIterator[EmbeddedSystem]:
    """Start `duologue up` on an empty data folder."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        async with embedded_system(Path(folder) / "data", settings) as system:
            yield system


@asynccontextmanager
async def start_distributed(engines: OwnEngines, settings: Settings) -> AsyncIterator[DistributedSystem]:
    """Start every role as processes behind nginx, with an empty database and topics of their own."""
    name = engines.postgres.create_database("template")
    shared = engines.shared(database=name, kafka_topic_prefix=f"{uuid.uuid4()}-")
    environment = {"KAFKA_PARTITIONS": "6", "DATABASE_POOL_SIZE": "5", **settings}
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        async with distributed_system(Path(folder), shared, environment) as system:
            yield system
    engines.postgres.drop_database(name)


@pytest.fixture(scope="session")
def session_engines(session_kafka: KafkaServer, session_postgres: PostgresServer) -> Iterator[OwnEngines]:
    """The engines of the distributed systems; the Valkey is not that of other tests, who flush theirs."""
    with needs_engine(from_apt_get=True):
        nginx_program()
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        valkey = ValkeyServer(Path(folder), fsync="everysec")
        valkey.start()
        yield OwnEngines(session_kafka, valkey, session_postgres)
        valkey.stop()


@pytest.fixture
def engines(session_engines: OwnEngines) -> Iterator[OwnEngines]:
    """The engines of the distributed systems, running; a test may stop, kill and pause them."""
    session_engines.restore()
    yield session_engines
    session_engines.restore()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standing_embedded() -> AsyncIterator[Standing[EmbeddedSystem]]:
    """The embedded system that tests share."""
    standing = Standing(start_embedded)
    yield standing
    await standing.end()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standing_distributed(session_engines: OwnEngines) -> AsyncIterator[Standing[DistributedSystem]]:
    """The distributed system that tests share."""
    standing = Standing(lambda settings: start_distributed(session_engines, settings))
    yield standing
    await standing.end()


@pytest.fixture
def system_settings() -> dict[str, str]:
    """Settings of the system beside the model's; a module overrides this fixture to change them.

    One try at the model, so that a failure comes soon.
    """
    return {
        "USER_RATE_LIMIT_MAX_REQUESTS": "10000",
        "TOKEN_RATE_LIMIT_MAX_REQUESTS": "10000",
        "MODEL_MAX_TRIES": "1",
    }


@pytest.fixture
def settings(model_server: ModelServer, system_settings: dict[str, str]) -> Settings:
    """All settings of the system: the model server is its provider."""
    return {"OPENAI_BASE_URL": model_server.base_url, **system_settings}


@pytest.fixture(params=["embedded", "distributed"])
def standing(request: pytest.FixtureRequest) -> Standing[System]:
    """The system of the mode that the test runs in."""
    if request.param == "distributed":
        request.getfixturevalue("engines")  # they run
    standing: Standing[System] = request.getfixturevalue(f"standing_{request.param}")
    return standing


@pytest_asyncio.fixture(loop_scope="session")
async def system(standing: Standing[System], settings: Settings) -> System:
    """A running system, ready, in both modes one after the other. It may be killed and started again."""
    return await standing.with_settings(settings)


@pytest_asyncio.fixture(loop_scope="session")
async def embedded(standing_embedded: Standing[EmbeddedSystem], settings: Settings) -> EmbeddedSystem:
    """The same, for what only the embedded mode has."""
    return await standing_embedded.with_settings(settings)


@pytest_asyncio.fixture(loop_scope="session")
async def distributed(
    standing_distributed: Standing[DistributedSystem], engines: OwnEngines, settings: Settings
) -> DistributedSystem:
    """The same, for what only many processes can show."""
    del engines  # they run
    return await standing_distributed.with_settings(settings)
