"""Roles that are started before `duologue migrate` has run: they wait, and lose and refuse nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.support.pipeline import Pipeline, RunningConsumer, RunningRelay, open_pipeline, settings, until

from duologue.cluster.postgres import PostgresServer
from duologue.domain.records import DEAD_LETTER_SUFFIX, INCOMING_TOPIC, RESPONSES_TOPIC
from duologue.store.database import run_once
from duologue.store.migrate import migrate
from duologue.store.revision import HEAD
from duologue.store.schema import dead_letters


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("session_postgres")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
async def pipeline(valkey: str, empty_url: str) -> AsyncIterator[Pipeline]:
    async with open_pipeline(valkey, empty_url) as opened:
        yield opened


class _Roles:
    """Both roles, started on a database that they cannot use, and how often they have asked it."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self._check = pipeline.database.check
        monkeypatch.setattr(pipeline.database, "check", self._count)
        self.consumer = RunningConsumer(pipeline, pipeline.model, settings())
        self.relay = RunningRelay(pipeline, settings())

    async def _count(self) -> None:
        self.asked += 1
        await self._check()

    async def wait(self) -> None:
        """Return when each has asked several times."""
        await until(lambda: self.asked >= 6)

    async def drain(self) -> None:
        await asyncio.gather(self.consumer.drain(), self.relay.drain())


def _set_revision(conn: Connection, revision: str) -> None:
    conn.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def _letters(conn: Connection) -> int:
    return conn.scalar(sa.select(sa.func.count()).select_from(dead_letters)) or 0


async def test_roles_started_before_the_migration_wait_for_it_and_then_work(
    pipeline: Pipeline, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pipeline.append_bytes(b"unreadable")  # whoever reads it sets it aside
    await pipeline.log.producer.append(RESPONSES_TOPIC, "key", b"unreadable", {})
    roles = _Roles(pipeline, monkeypatch)
    await roles.wait()
    assert not roles.consumer.role.assigned
    assert not roles.relay.role.assigned
    for topic in (INCOMING_TOPIC, RESPONSES_TOPIC):
        assert await pipeline.records(topic + DEAD_LETTER_SUFFIX) == []
    await asyncio.to_thread(migrate, empty_url)

    async def both_are_kept() -> bool:
        return await pipeline.database.read(_letters) == 2

    await until(both_are_kept)
    await pipeline.say(await pipeline.conversation(), "hello")
    (answer,) = await pipeline.answers(1)
    assert answer["content"] == "You said: hello"
    await roles.drain()


@pytest.mark.parametrize("revision", ["0000", "ab12cd34ef56"], ids=["older", "of another program"])
async def test_message_waits_for_the_schema_that_this_program_needs(
    pipeline: Pipeline, empty_url: str, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    await asyncio.to_thread(migrate, empty_url)
    conversation = await pipeline.conversation()
    await asyncio.to_thread(run_once, empty_url, lambda conn: _set_revision(conn, revision))
    message = await pipeline.say(conversation, "hello")
    roles = _Roles(pipeline, monkeypatch)
    await roles.wait()
    assert await pipeline.position() == 1
    assert await pipeline.replies() == {}
    await asyncio.to_thread(run_once, empty_url, lambda conn: _set_revision(conn, HEAD))
    (answer,) = await pipeline.answers(1)
    assert answer["message_id"] == message.message_id
    await roles.drain()


def _become_newer(conn: Connection) -> None:
    for table in ("messages", "conversations", "users"):
        conn.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN of_a_later_version TEXT")
    _set_revision(conn, "9999")


async def test_roles_that_work_go_on_when_a_newer_program_migrates(pipeline: Pipeline, empty_url: str) -> None:
    await asyncio.to_thread(migrate, empty_url)
    consumer = await pipeline.consumer()
    await pipeline.relay()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "before")
    await pipeline.answers(1)
    await asyncio.to_thread(run_once, empty_url, _become_newer)
    await pipeline.say(conversation, "after")
    await pipeline.answers(2)
    await consumer.drain()
    await pipeline.consumer()  # started again, while its successor's version is not everywhere yet
    await pipeline.say(await pipeline.conversation(), "again")
    said = [answer["content"] for answer in await pipeline.answers(3)]
    assert said == ["You said: before", "You said: after", "You said: again"]


async def test_roles_told_to_end_before_the_migration_end(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = _Roles(pipeline, monkeypatch)
    await roles.wait()
    async with asyncio.timeout(5):
        await roles.drain()
