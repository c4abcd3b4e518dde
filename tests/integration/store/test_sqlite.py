"""SQLite: one file, one writer, readers beside it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW

from duologue.domain.errors import StoreUnavailable
from duologue.store.database import Database, open_database
from duologue.store.migrate import migrate
from duologue.store.sqlite import SqliteDatabase
from duologue.store.users import ensure_user, find_user


@pytest.fixture
async def database(sqlite_url: str) -> AsyncIterator[Database]:
    async with open_database(sqlite_url) as opened:
        yield opened


def _pragma(conn: Connection, name: str) -> object:
    return conn.exec_driver_sql(f"PRAGMA {name}").scalar()


async def test_every_connection_is_durable_and_checks_references(database: Database) -> None:
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    for run in (database.read, database.write):
        assert {name: await run(_pragma, name) for name in expected} == expected


async def test_file_that_another_process_holds_is_unavailable_until_it_lets_go(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    database = SqliteDatabase(sqlite_url, busy_timeout_seconds=0.01)
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await database.write(ensure_user, "default", "eve", "guest", NOW)
        other.execute("ROLLBACK")
        assert await database.write(ensure_user, "default", "eve", "guest", NOW) is not None
    finally:
        other.close()
        await database.aclose()


async def test_reading_goes_on_while_a_transaction_is_open(database: Database) -> None:
    ada = await database.write(ensure_user, "default", "ada", "guest", NOW)
    began, may_end = threading.Event(), threading.Event()

    def hold(conn: Connection) -> None:
        ensure_user(conn, "default", "eve", "guest", NOW)
        began.set()
        may_end.wait(10)

    writing = asyncio.create_task(database.write(hold))
    try:
        assert await asyncio.to_thread(began.wait, 10)
        assert await database.read(find_user, "default", "ada") == ada
        assert await database.read(find_user, "default", "eve") is None
    finally:
        may_end.set()
        await writing
    assert await database.read(find_user, "default", "eve") is not None


def test_folder_that_is_not_there_makes_the_store_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        migrate(f"sqlite:///{tmp_path / 'nowhere' / 'duologue.db'}")
