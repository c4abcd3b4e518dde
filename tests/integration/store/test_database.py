"""The port: transactions, errors, many tasks at once; and the schema's migrations."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url
from tests.integration.store.scenario import NOW, Scenario

from duologue.cluster.postgres import PostgresServer
from duologue.domain.errors import StartRefused, StoreUnavailable
from duologue.store.characters import list_characters
from duologue.store.database import Database, StoreRefused, open_database, run_once
from duologue.store.messages import StoredRequest
from duologue.store.migrate import alembic_config, migrate, migrate_sql
from duologue.store.revision import HEAD
from duologue.store.schema import METADATA, users
from duologue.store.users import ensure_user, find_user


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


async def test_check_passes_for_a_migrated_database(database: Database) -> None:
    await database.check()


async def test_check_of_a_database_that_is_not_migrated_says_what_to_do(empty_url: str) -> None:
    async with open_database(empty_url) as database:
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


@pytest.mark.parametrize("url", ["no url", "postgresql://host:port/name", "postgresql://127.0.0.1:1/x?sslmode=often"])
def test_url_that_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises(StartRefused, match="DATABASE_URL"):
        migrate(url)


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_migrated_schema_is_that_of_the_tables(database_url: str, empty_url: str) -> None:
    differences, migrated = run_once(database_url, _compared)
    run_once(empty_url, METADATA.create_all)
    assert differences == []
    # Alembic compares no conditions and expressions of indexes.
    assert migrated == run_once(empty_url, _indexes)


def _compared(conn: Connection) -> tuple[list[object], dict[str, str]]:
    context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": True})
    return compare_metadata(context, METADATA), _indexes(conn)


def _indexes(conn: Connection) -> dict[str, str]:
    """Return the statement that makes each index."""
    if conn.dialect.name == "postgresql":
        statement = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    else:
        statement = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    rows = conn.exec_driver_sql(statement)
    return {name: " ".join(text.split()) for name, text in rows if "alembic_version" not in text}


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_migrating_again_changes_nothing(database_url: str) -> None:
    migrate(database_url)
    migrate(database_url)


def test_migrating_at_once_from_several_processes_succeeds(empty_url: str) -> None:
    commands = [[sys.executable, "-c", f"from duologue.store.migrate import migrate; migrate({empty_url!r})"]] * 3
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in running] == [0, 0, 0]


def _set_revision(conn: Connection, revision: str) -> None:
    conn.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_migrating_the_database_of_a_newer_program_is_refused(database_url: str) -> None:
    run_once(database_url, lambda conn: _set_revision(conn, "9999"))
    with pytest.raises(StartRefused, match="another version"):
        migrate(database_url)


async def test_check_passes_for_the_database_of_a_newer_program(database: Database) -> None:
    await database.write(_set_revision, "9999")
    await database.check()


@pytest.mark.parametrize("revision", ["0000", "10000", "ab12", "f00d"])
async def test_check_of_an_older_or_foreign_schema_says_what_to_do(database: Database, revision: str) -> None:
    await database.write(_set_revision, revision)
    with pytest.raises(StoreUnavailable, match=f"at revision {revision}, .*duologue migrate"):
        await database.check()


def test_revisions_are_numbers_of_four_digits_in_their_order() -> None:
    script = ScriptDirectory.from_config(alembic_config())
    revisions = [each.revision for each in script.walk_revisions()][::-1]
    assert revisions == [f"{number:04d}" for number in range(1, len(revisions) + 1)]


def test_migration_that_has_nothing_to_do_does_not_import_alembic(database_url: str) -> None:
    code = f"import sys; from duologue.store.migrate import migrate; migrate({database_url!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "alembic" not in done.stdout.split()


@pytest.mark.parametrize("url", ["sqlite:///unused.db", "postgresql://nobody@nowhere/unused", "postgres://nowhere"])
def test_statements_of_the_migration_can_be_printed(url: str) -> None:
    printed = migrate_sql(url)
    assert all(f"CREATE TABLE {table}" in printed for table in METADATA.tables)


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
async def test_printed_statements_make_the_schema_and_migrating_then_inserts_the_characters(
    database_url: str, empty_url: str, request: pytest.FixtureRequest
) -> None:
    printed = migrate_sql(empty_url)
    if empty_url.startswith("sqlite"):
        with closing(sqlite3.connect(empty_url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(printed)
    else:
        server: PostgresServer = request.getfixturevalue("session_postgres")
        server.execute(printed, str(make_url(empty_url).database))  # psql runs it
    differences, indexes = await asyncio.to_thread(run_once, empty_url, _compared)
    assert differences == []
    assert indexes == await asyncio.to_thread(run_once, database_url, _indexes)
    async with open_database(empty_url) as database:
        await database.check()
        assert await database.read(list_characters, "default") == []
        await asyncio.to_thread(migrate, empty_url)
        assert await database.read(list_characters, "default") != []
