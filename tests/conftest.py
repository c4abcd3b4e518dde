"""Fixtures that every test may use. Engines are real ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from tests.support.missing import needs_engine
from tests.support.proxied_kafka import ProxiedKafka
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from duologue.cluster.kafka import KafkaServer
from duologue.cluster.postgres import PostgresServer
from duologue.cluster.valkey import ValkeyServer
from duologue.store.migrate import migrate

_END_TO_END = "tests/e2e/"

pytest.register_assert_rewrite("tests.support.crowd", "tests.support.witness")  # so that they tell what they compare


class _TwoGroups(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives end-to-end tests, which mostly wait, to one process, and all others, which mostly compute, to another."""

    def _split_scope(self, nodeid: str) -> str:
        return "end-to-end" if nodeid.startswith(_END_TO_END) else "parts"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _TwoGroups:
    """Choose how `make test` runs the tests in two processes."""
    return _TwoGroups(config, log)


@pytest.fixture(scope="session")
def session_valkey() -> Iterator[ValkeyServer]:
    """The Valkey that tests share. Take `valkey` instead: it is clean."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def valkey(session_valkey: ValkeyServer) -> str:
    """URL of a clean Valkey with the bundled one's options. Not to be stopped: `valkey_server` is for that."""
    session_valkey.flush()
    return session_valkey.url


@pytest.fixture
def valkey_server() -> Iterator[ValkeyServer]:
    """A running Valkey of the test's own, to stop, kill, pause and start again."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def session_postgres() -> Iterator[PostgresServer]:
    """The PostgreSQL that tests share, with a migrated database `template`. Take `postgres_url` instead."""
    with _postgres() as server:
        server.execute("CREATE DATABASE template")
        migrate(server.url("template"))
        yield server


@pytest.fixture
def postgres_url(session_postgres: PostgresServer) -> Iterator[str]:
    """URL of a migrated, empty database of the test's own."""
    name = session_postgres.create_database("template")
    yield session_postgres.url(name)
    session_postgres.drop_database(name)


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A running PostgreSQL of the test's own, with a migrated database `duologue`, to stop, kill, pause and start."""
    with _postgres() as server:
        server.execute("CREATE DATABASE duologue")
        migrate(server.url("duologue"))
        yield server


@contextmanager
def _postgres() -> Iterator[PostgresServer]:
    with needs_engine():
        server = PostgresServer.temporary()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def session_kafka() -> Iterator[ProxiedKafka]:
    """The Kafka that tests share. Take `kafka` instead: it runs."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        server = ProxiedKafka(Path(folder))
        with needs_engine():
            server.prepare()
        server.start()
        yield server
        server.kill()


@pytest.fixture
def kafka(session_kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A running Kafka without topics, which a test may stop, kill and pause."""
    session_kafka.restore()
    yield session_kafka
    session_kafka.restore()
    _delete_topics(session_kafka)


def _delete_topics(server: KafkaServer) -> None:
    """Each that is left makes every later start longer, by 30 ms for its partitions' files."""
    admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
    topics = [topic for topic in admin.list_topics(timeout=30).topics if not topic.startswith("__")]
    if topics:
        for deleted in admin.delete_topics(topics, request_timeout=30).values():
            deleted.result()
