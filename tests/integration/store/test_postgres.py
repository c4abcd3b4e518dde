"""PostgreSQL: transactions that meet, conflicts, limits of time, and a server that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario, ended

from duologue.cluster.postgres import PostgresServer
from duologue.domain.errors import StoreUnavailable
from duologue.observability.metrics import STORE_RETRIES
from duologue.store.conversations import new_conversation, owned_conversation
from duologue.store.database import Database, StoreRefused, open_database
from duologue.store.deletion import delete_conversation, delete_user
from duologue.store.fresh import Begun, store_fresh
from duologue.store.history import MessageRow, changed_messages
from duologue.store.messages import Refused, StoredRequest
from duologue.store.migrate import migrate_sql
from duologue.store.postgres import MAX_TRIES, PostgresDatabase
from duologue.store.replies import claim, mark_leaving
from duologue.store.schema import messages, users
from duologue.store.users import ensure_user, find_user

T = TypeVar("T")

GATE = 4711
"""The key of an advisory lock at which transactions of a test wait for each other."""


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[PostgresDatabase]:
    opened = PostgresDatabase(postgres_url)
    yield opened
    await opened.aclose()


def _pass_gate(conn: Connection) -> None:
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(GATE)))


def _waiting(conn: Connection) -> int:
    """Count the transactions that wait for any lock."""
    return int(conn.exec_driver_sql("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted").scalar_one())


async def _until_waiting(database: Database, count: int) -> None:
    async def enough() -> bool:
        return await database.read(_waiting) >= count

    await _until(enough)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _gate_closed(database: PostgresDatabase) -> AsyncIterator[None]:
    """Let nobody through the gate within the context."""
    async with database._engine.connect() as connection:
        await connection.exec_driver_sql(f"SELECT pg_advisory_lock({GATE})")
        try:
            yield
        finally:
            await connection.exec_driver_sql(f"SELECT pg_advisory_unlock({GATE})")


def _retries(cause: str) -> float:
    return float(STORE_RETRIES.labels(cause)._value.get())


def _rename_both(conn: Connection, first: str, second: str) -> None:
    conn.execute(sa.update(users).where(users.c.id == first).values(name=users.c.name + "!"))
    _pass_gate(conn)
    conn.execute(sa.update(users).where(users.c.id == second).values(name=users.c.name + "?"))


async def test_transactions_that_lock_each_other_out_both_take_place(database: PostgresDatabase) -> None:
    one = await database.write(ensure_user, "default", "one", "guest", NOW)
    two = await database.write(ensure_user, "default", "two", "guest", NOW)
    assert one is not None
    assert two is not None
    before = _retries("deadlock")
    async with _gate_closed(database):
        crossing = [
            asyncio.create_task(database.write(_rename_both, one.uid, two.uid)),
            asyncio.create_task(database.write(_rename_both, two.uid, one.uid)),
        ]
        await _until_waiting(database, 2)
    await asyncio.gather(*crossing)
    names = [(await database.read(find_user, "default", name)) for name in ("one", "two")]
    assert [sorted(row.name[3:]) for row in names if row] == [["!", "?"], ["!", "?"]]
    assert _retries("deadlock") == before + 1


def _count_up(conn: Connection, uid: str) -> None:
    conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    seen = conn.scalar(sa.select(users.c.updated_at).where(users.c.id == uid))
    _pass_gate(conn)
    conn.execute(sa.update(users).where(users.c.id == uid).values(updated_at=(seen or 0) + 1))


async def test_transaction_that_cannot_be_serialized_is_repeated(database: PostgresDatabase) -> None:
    user = await database.write(ensure_user, "default", "one", "guest", NOW)
    assert user is not None
    before = _retries("serialization")
    async with _gate_closed(database):
        counting = [asyncio.create_task(database.write(_count_up, user.uid)) for _ in range(3)]
        await _until_waiting(database, 3)
    await asyncio.gather(*counting)
    row = await database.read(find_user, "default", "one")
    assert row is not None
    assert row.updated_at == NOW + 3
    assert _retries("serialization") > before


async def test_transaction_that_always_conflicts_is_given_up(database: PostgresDatabase) -> None:
    before = _retries("deadlock")
    with pytest.raises(StoreUnavailable):
        await database.write(_fail_with, "40P01")
    assert _retries("deadlock") == before + MAX_TRIES - 1


def _fail_with(conn: Connection, sqlstate: str) -> None:
    conn.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{sqlstate}'; END $$")


@pytest.mark.parametrize("sqlstate", ["57014", "53300", "53100", "25P03", "0A000", "58030", "XX000"])
async def test_error_that_is_not_of_the_data_makes_the_store_unavailable(
    database: PostgresDatabase, sqlstate: str
) -> None:
    with pytest.raises(StoreUnavailable, match="on purpose"):
        await database.write(_fail_with, sqlstate)


@pytest.mark.parametrize("sqlstate", ["22001", "22P05", "23505", "54000"])
async def test_error_of_the_data_is_a_refusal(database: PostgresDatabase, sqlstate: str) -> None:
    with pytest.raises(StoreRefused):
        await database.write(_fail_with, sqlstate)


@pytest.mark.parametrize(
    "change",
    [
        {"content": "secret\0"},
        {"content": "secret\ud800"},
        {"metadata": {"said": "secret\0"}},
        {"submitted_at": 2**63},
    ],
    ids=["NUL", "lone surrogate", "NUL in JSON", "number out of range"],
)
async def test_value_that_cannot_be_stored_is_refused_without_being_quoted(
    database: PostgresDatabase, change: dict[str, Any]
) -> None:
    ada = await Scenario.open(database)
    incoming = ada.says("one")
    bad = msgspec.structs.replace(incoming, record=msgspec.structs.replace(incoming.record, **change))
    with pytest.raises(StoreRefused) as refusal:
        await ada.store(ada.says("good"), bad)
    assert "secret" not in str(refusal.value)
    assert [each.position for each in await ada.asked("good")] == [1]


def _sleep(conn: Connection, seconds: float) -> None:
    conn.execute(sa.select(sa.func.pg_sleep(seconds)))


async def test_transaction_that_takes_too_long_is_undone_and_the_next_one_works(postgres_url: str) -> None:
    def write_and_sleep(conn: Connection) -> None:
        ensure_user(conn, "default", "eve", "guest", NOW)
        _sleep(conn, 60)

    database = PostgresDatabase(postgres_url, bound_seconds=0.3)
    try:
        with pytest.raises(StoreUnavailable):
            await database.write(write_and_sleep)
        assert await database.read(find_user, "default", "eve") is None
    finally:
        await database.aclose()


def _limits(conn: Connection) -> dict[str, str]:
    rows = conn.exec_driver_sql(
        "SELECT name, setting FROM pg_settings WHERE name LIKE '%%timeout' AND setting <> '0' AND context = 'user'"
    )
    return {row[0]: row[1] for row in rows}


async def test_server_itself_limits_the_time_of_transactions(database: PostgresDatabase) -> None:
    limits = await database.read(_limits)
    assert limits["statement_timeout"] == limits["idle_in_transaction_session_timeout"] == "10000"
    version = int(await database.read(lambda conn: conn.exec_driver_sql("SHOW server_version_num").scalar_one()))
    assert version < 170000 or limits["transaction_timeout"] == "10000"


async def test_caller_that_is_cancelled_does_not_stop_its_transaction(database: PostgresDatabase) -> None:
    def write(conn: Connection) -> None:
        _pass_gate(conn)
        ensure_user(conn, "default", "eve", "guest", NOW)

    async with _gate_closed(database):
        caller = asyncio.create_task(database.write(write))
        await _until_waiting(database, 1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller

    async def is_written() -> bool:
        return await database.read(find_user, "default", "eve") is not None

    await _until(is_written)


async def test_closing_waits_for_what_runs(postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url)
    caller = asyncio.create_task(database.write(ensure_user, "default", "eve", "guest", NOW))
    await asyncio.sleep(0)
    await database.aclose()
    assert await caller is not None


async def test_query_that_reads_sees_one_snapshot_and_cannot_write(database: PostgresDatabase) -> None:
    def count_twice(conn: Connection) -> list[int]:
        counts = [conn.scalar(sa.select(sa.func.count()).select_from(users)) or 0]
        _pass_gate(conn)
        return [*counts, conn.scalar(sa.select(sa.func.count()).select_from(users)) or 0]

    async with _gate_closed(database):
        reading = asyncio.create_task(database.read(count_twice))
        await _until_waiting(database, 1)
        await database.write(ensure_user, "default", "eve", "guest", NOW)
    assert await reading == [0, 0]
    with pytest.raises(StoreUnavailable, match="read-only"):
        await database.read(ensure_user, "default", "mallory", "guest", NOW)


# Transactions that meet


async def test_batches_for_the_same_conversations_at_once_give_dense_positions_and_no_deadlock(
    database: PostgresDatabase,
) -> None:
    ada = await Scenario.open(database)
    threads = [await ada.another_conversation() for _ in range(4)]
    before = _retries("deadlock")

    async def store(worker: int) -> list[StoredRequest]:
        order = threads[worker % 4 :] + threads[: worker % 4]  # each begins with another one
        batch = [ada.says(f"{thread.id} {worker} {number}", thread) for number in range(3) for thread in order]
        return [entry for entry in await ada.store(*batch) if isinstance(entry, StoredRequest)]

    stored = [entry for entries in await asyncio.gather(*map(store, range(8))) for entry in entries]
    for thread in threads:
        positions = sorted(entry.position for entry in stored if entry.conversation_id == thread.id)
        assert positions == list(range(1, 25))
    assert _retries("deadlock") == before


async def test_same_batch_stored_by_two_workers_at_once_is_stored_once(database: PostgresDatabase) -> None:
    ada = await Scenario.open(database)
    batch = [ada.says("one"), ada.says("two")]
    both = await asyncio.gather(*(ada.store(*batch) for _ in range(4)))
    replies = {tuple(entry.reply_id for entry in entries if isinstance(entry, StoredRequest)) for entries in both}
    assert len(replies) == 1
    assert sum(entry.fresh for entries in both for entry in entries if isinstance(entry, StoredRequest)) == 2


async def test_copy_stored_in_another_conversation_at_once_is_refused_when_it_is_stored_alone(
    database: PostgresDatabase,
) -> None:
    ada = await Scenario.open(database)
    other = await ada.another_conversation()
    copies = [ada.says("one"), ada.says("one", other)]
    results = await asyncio.gather(*map(ada.store, copies), return_exceptions=True)
    for copy, result in zip(copies, results, strict=True):
        if isinstance(result, StoreRefused):  # they met: the worker stores row by row
            assert await ada.store(copy) == [Refused(ada.id_of("one"), "other_conversation")]
    rows = await database.read(
        lambda conn: conn.scalar(sa.select(sa.func.count()).select_from(messages).where(messages.c.role == "user"))
    )
    assert rows == 1


async def test_fresh_batches_for_the_same_conversations_at_once_give_dense_positions_and_no_deadlock(
    database: PostgresDatabase,
) -> None:
    ada = await Scenario.open(database)
    threads = [await ada.another_conversation() for _ in range(4)]
    before = _retries("deadlock")

    async def store(worker: int) -> list[Begun | None]:
        order = threads[worker % 4 :] + threads[: worker % 4]
        batch = [ada.says(f"{thread.id} {worker}", thread) for thread in order]
        return await database.autocommit(store_fresh, batch, range(4), "me", NOW)

    begun = [entry for entries in await asyncio.gather(*map(store, range(8))) for entry in entries if entry]
    for thread in threads:
        mine = [entry for entry in begun if entry.stored.conversation_id == thread.id]
        assert sorted(entry.stored.position for entry in mine) == list(range(1, len(mine) + 1))
        assert [entry.stored.turn for entry in mine if entry.claim] == [1]
    assert _retries("deadlock") == before


@pytest.mark.parametrize("change", ["next_turn = next_turn + 1", "next_position = next_position + 1", "deleted_at = 1"])
async def test_fresh_message_stored_while_its_conversation_changes_is_left(
    database: PostgresDatabase, change: str
) -> None:
    ada = await Scenario.open(database)
    other = await ada.another_conversation()
    batch = [ada.says("one"), ada.says("two", other)]

    def change_it(conn: Connection) -> None:
        conn.exec_driver_sql(f"UPDATE conversations SET {change} WHERE id = '{ada.conversation.id}'")
        _pass_gate(conn)

    async with _gate_closed(database):
        changing = asyncio.create_task(database.write(change_it))
        await _until_waiting(database, 1)
        storing = asyncio.create_task(database.autocommit(store_fresh, batch, {0, 1}, "me", NOW))
        await _until_waiting(database, 2)
    await changing
    assert [entry and entry.stored.content for entry in await storing] == [None, "two"]
    assert await database.read(lambda conn: conn.scalar(sa.select(sa.func.count()).select_from(messages))) == 2


async def test_message_stored_while_its_conversation_is_deleted_is_refused(database: PostgresDatabase) -> None:
    ada = await Scenario.open(database)

    def delete(conn: Connection) -> None:
        delete_conversation(conn, ada.user.uid, ada.conversation.id, NOW)
        _pass_gate(conn)

    async with _gate_closed(database):
        deleting = asyncio.create_task(database.write(delete))
        await _until_waiting(database, 1)
        storing = asyncio.create_task(ada.store(ada.says("one")))
        await _until_waiting(database, 2)
    assert await storing == [Refused(ada.id_of("one"), "conversation_deleted")]
    await deleting


async def test_conversation_made_while_its_user_is_deleted_takes_no_message(database: PostgresDatabase) -> None:
    ada = await Scenario.open(database)

    def delete(conn: Connection) -> None:
        delete_user(conn, ada.user.uid, NOW)
        _pass_gate(conn)

    async with _gate_closed(database):
        deleting = asyncio.create_task(database.write(delete))
        await _until_waiting(database, 1)
        late = await database.write(new_conversation, ada.user, None, NOW)
    await deleting
    assert await ada.store(ada.says("one", late)) == [Refused(ada.id_of("one"), "user_deleted")]


def _held_claim(conn: Connection, reply_id: str, owner: str) -> int:
    (held,) = claim(conn, [reply_id], owner, NOW)
    _pass_gate(conn)
    return held.attempt


async def test_second_worker_waits_for_the_first_ones_claim_and_takes_over(database: PostgresDatabase) -> None:
    ada = await Scenario.open(database)
    (request,) = await ada.asked("one")
    async with _gate_closed(database):
        first = asyncio.create_task(database.write(_held_claim, request.reply_id, "first"))
        await _until_waiting(database, 1)
        second = asyncio.create_task(ada.claim(request, owner="second"))
        await _until_waiting(database, 2)
    assert await first == 1
    assert [(held.attempt, held.takeovers) for held in await second] == [(2, 1)]


async def test_completion_that_meets_a_takeover_is_dropped(database: PostgresDatabase) -> None:
    ada = await Scenario.open(database)
    (request,) = await ada.asked("one")
    (old,) = await ada.claim(request, owner="old")
    async with _gate_closed(database):
        taking = asyncio.create_task(database.write(_held_claim, request.reply_id, "new"))
        await _until_waiting(database, 1)
        ending = asyncio.create_task(ada.finish(ended(old, "too late")))
        await _until_waiting(database, 2)
    assert await taking == 2
    assert await ending == set()


async def test_claim_of_the_next_turn_waits_for_the_outcome_before_it_to_be_committed(
    database: PostgresDatabase,
) -> None:
    ada = await Scenario.open(database)
    one, two = await ada.asked("one", "two")
    (held,) = await ada.claim(one)

    def finish(conn: Connection) -> None:
        conn.execute(sa.update(messages).where(messages.c.id == held.reply_id).values(state="complete"))
        _pass_gate(conn)

    async with _gate_closed(database):
        finishing = asyncio.create_task(database.write(finish))
        await _until_waiting(database, 1)
        assert await ada.claim(two) == []
    await finishing
    assert len(await ada.claim(two)) == 1


async def test_handover_is_told_by_the_databases_clock_not_by_the_workers(database: PostgresDatabase) -> None:
    ada = await Scenario.open(database)
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request, owner="old")
    await database.write(mark_leaving, {held.reply_id: held.attempt}, 60_000, NOW - 10**9)
    assert await ada.claim(request, owner="new", now=NOW + 10**9) == []


async def test_change_that_is_committed_late_is_found_by_the_next_walk(database: PostgresDatabase) -> None:
    ada = await Scenario.open(database)
    (one,) = await ada.asked("one", now=NOW)
    (two,) = await ada.asked("two", now=NOW)

    def change(conn: Connection) -> None:
        conn.execute(sa.update(messages).where(messages.c.id == one.reply_id).values(updated_at=NOW + 1000))
        _pass_gate(conn)

    async with _gate_closed(database):
        late = asyncio.create_task(database.write(change))
        await _until_waiting(database, 1)
        await database.write(_touch, two.reply_id, NOW + 5000)  # a later one is seen earlier
        page = await database.read(changed_messages, ada.user.uid, limit=50, now=NOW + 9000)
        assert _change_of(one.reply_id, page.items) == NOW
    await late
    page = await database.read(changed_messages, ada.user.uid, after=page.next_cursor, limit=50, now=NOW + 20_000)
    assert _change_of(one.reply_id, page.items) == NOW + 1000


def _touch(conn: Connection, reply_id: str, now: int) -> None:
    conn.execute(sa.update(messages).where(messages.c.id == reply_id).values(updated_at=now))


def _change_of(message_id: str, rows: list[MessageRow]) -> int | None:
    return next((row.updated_at for row in rows if row.id == message_id), None)


# A server that is away


async def _until_it_works(call: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.02)


async def test_server_that_was_killed_is_unavailable_until_it_is_back_and_has_lost_nothing(
    postgres_server: PostgresServer,
) -> None:
    async with open_database(postgres_server.url("duologue")) as database:
        ada = await Scenario.open(database)
        await ada.asked("one")
        postgres_server.kill()
        with pytest.raises(StoreUnavailable):
            await ada.asked("two")
        with pytest.raises(StoreUnavailable):
            await database.check()
        postgres_server.start()
        (two,) = await _until_it_works(lambda: ada.asked("two"))
        (one,) = await ada.asked("one")
        assert (one.fresh, one.position, two.position) == (False, 1, 2)
        row = await database.read(owned_conversation, ada.user.uid, ada.conversation.id)
        assert row is not None


async def test_server_that_ended_and_began_between_two_transactions_is_not_noticed(
    postgres_server: PostgresServer,
) -> None:
    async with open_database(postgres_server.url("duologue")) as database:
        assert isinstance(database, PostgresDatabase)
        await database.check()
        async with database._engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        postgres_server.stop()
        postgres_server.start()

        async def is_heard_of() -> bool:
            return bool(raw.is_closed())

        await _until(is_heard_of)
        await database.check()


async def test_server_that_hangs_is_unavailable_within_the_bound_and_commits_nothing_of_it(
    postgres_server: PostgresServer,
) -> None:
    database = PostgresDatabase(postgres_server.url("duologue"), bound_seconds=0.5)
    try:
        await database.check()
        postgres_server.pause()
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable):
            await database.write(ensure_user, "default", "eve", "guest", NOW)
        assert asyncio.get_running_loop().time() - began < 5
        postgres_server.resume()
        assert await _until_it_works(lambda: database.read(find_user, "default", "eve")) is None
    finally:
        await database.aclose()


async def test_closing_does_not_wait_for_a_server_that_hangs(postgres_server: PostgresServer) -> None:
    database = PostgresDatabase(postgres_server.url("duologue"))
    await asyncio.gather(*(database.check() for _ in range(4)))
    postgres_server.pause()
    async with asyncio.timeout(5):
        await database.aclose()


async def test_more_transactions_than_connections_wait_for_one(postgres_url: str) -> None:
    async with open_database(postgres_url, pool_size=2) as database:
        people = [database.write(ensure_user, "default", f"user{number}", "guest", NOW) for number in range(20)]
        assert len({user.uid for user in await asyncio.gather(*people) if user}) == 20


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
async def test_url_may_be_written_in_each_usual_way(postgres_url: str, scheme: str) -> None:
    async with open_database(postgres_url.replace("postgresql", scheme, 1)) as database:
        await database.check()


async def test_server_that_is_not_there_is_unavailable() -> None:
    async with open_database("postgresql://duologue@127.0.0.1:1/duologue") as database:
        with pytest.raises(StoreUnavailable):
            await database.check()


async def test_printed_statements_make_the_schema(session_postgres: PostgresServer) -> None:
    name = session_postgres.create_database()
    session_postgres.execute(migrate_sql(session_postgres.url(name)), name)
    async with open_database(session_postgres.url(name)) as database:
        await database.check()
    session_postgres.drop_database(name)
