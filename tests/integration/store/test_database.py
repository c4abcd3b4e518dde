"""The port: transactions, errors, many tasks at once; and the schema's migrations."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario

from duologue.domain.errors import StartRefused, StoreUnavailable
from duologue.store.characters import list_characters
from duologue.store.database import Database, StoreRefused, open_database
from duologue.store.messages import StoredRequest
from duologue.store.migrate import alembic_config, migrate, migrate_sql
from duologue.store.revision import HEAD
from duologue.store.schema import METADATA, users
from duologue.store.sqlite import SqliteDatabase
from duologue.store.users import ensure_user, find_user


def _pragma(conn: Connection, name: str) -> object:
    return conn.exec_driver_sql(f"PRAGMA {name}").scalar()


async def test_every_connection_is_durable_and_checks_references(database: Database) -> None:
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    for run in (database.read, database.write):
        assert {name: await run(_pragma, name) for name in expected} == expected


def _write_and_fail(conn: Connection) -> None:
    ensure_user(conn, "default", "eve", "guest", NOW)
    raise RuntimeError("after the write")


async def test_query_that_raises_is_undone_and_the_next_one_works(database: Database) -> None:
    with pytest.raises(RuntimeError, match="after the write"):
        await database.write(_write_and_fail)
    assert await database.read(find_user, "default", "eve") is None
    assert await database.write(ensure_user, "default", "eve", "guest", NOW) is not None


async def test_data_that_breaks_a_rule_of_the_schema_is_refused(database: Database) -> None:
    with pytest.raises(StoreRefused):
        await database.write(lambda conn: conn.execute(sa.insert(users), {"id": "x"}))


async def test_file_that_another_process_holds_is_unavailable_until_it_lets_go(database_url: str) -> None:
    path = database_url.removeprefix("sqlite:///")
    database = SqliteDatabase(database_url, busy_timeout_seconds=0.01)
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


async def test_many_tasks_that_write_and_read_at_once_all_succeed(database: Database) -> None:
    people = [await Scenario.open(database, f"user{number}") for number in range(8)]

    async def talk(person: Scenario) -> list[int]:
        positions = []
        for number in range(10):
            (request,) = await person.store(person.says(f"message {number}"))
            assert isinstance(request, StoredRequest)
            positions.append(request.position)
            await database.read(find_user, "default", person.user.user_id)
        return positions

    assert await asyncio.gather(*map(talk, people)) == [list(range(1, 11))] * 8


async def test_reading_goes_on_while_a_transaction_is_open(ada: Scenario, database: Database) -> None:
    began, may_end = threading.Event(), threading.Event()

    def hold(conn: Connection) -> None:
        ensure_user(conn, "default", "eve", "guest", NOW)
        began.set()
        may_end.wait(10)

    writing = asyncio.create_task(database.write(hold))
    try:
        assert await asyncio.to_thread(began.wait, 10)
        assert await database.read(find_user, "default", ada.user.user_id) == ada.user
        assert await database.read(find_user, "default", "eve") is None
    finally:
        may_end.set()
        await writing
    assert await database.read(find_user, "default", "eve") is not None


async def test_check_passes_for_a_migrated_database(database: Database) -> None:
    await database.check()


async def test_check_of_a_database_that_is_not_migrated_says_what_to_do(tmp_path: Path) -> None:
    async with open_database(f"sqlite:///{tmp_path / 'empty.db'}") as database:
        with pytest.raises(StoreUnavailable, match="duologue migrate"):
            await database.check()
        with pytest.raises(StoreUnavailable):
            await database.read(list_characters, "default")


async def test_url_of_an_unknown_database_is_refused() -> None:
    with pytest.raises(StartRefused, match="mysql"):
        async with open_database("mysql://localhost/x"):
            pass
    with pytest.raises(StartRefused, match="mysql"):
        migrate("mysql://localhost/x")


def test_folder_that_is_not_there_makes_the_store_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        migrate(f"sqlite:///{tmp_path / 'nowhere' / 'duologue.db'}")


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_migrated_schema_is_that_of_the_tables(database_url: str) -> None:
    engine = sa.create_engine(database_url)
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, METADATA)
        migrated = _statements(conn)
    engine.dispose()
    assert differences == []
    assert migrated == _created_statements()


def _created_statements() -> dict[str, str]:
    """What the tables themselves would create, since Alembic compares no conditions and expressions of indexes."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    METADATA.create_all(engine)
    with engine.connect() as conn:
        statements = _statements(conn)
    engine.dispose()
    return statements


def _statements(conn: Connection) -> dict[str, str]:
    rows = conn.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    return {name: " ".join(sql.split()) for name, sql in rows}


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_migrating_again_changes_nothing(database_url: str) -> None:
    migrate(database_url)
    migrate(database_url)


def test_migrating_at_once_from_several_threads_succeeds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'raced.db'}"
    commands = [[sys.executable, "-c", f"from duologue.store.migrate import migrate; migrate({url!r})"]] * 3
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in running] == [0, 0, 0]


def test_database_of_a_newer_program_is_refused(database_url: str) -> None:
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StartRefused):
        migrate(database_url)


def test_migration_that_has_nothing_to_do_does_not_import_alembic(database_url: str) -> None:
    code = f"import sys; from duologue.store.migrate import migrate; migrate({database_url!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "alembic" not in done.stdout.split()


def test_statements_of_the_migration_can_be_printed() -> None:
    printed = migrate_sql("sqlite:///unused.db")
    assert all(f"CREATE TABLE {table}" in printed for table in METADATA.tables)
