"""Hot statements go by an index, never through the table, and never sort a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW
from tests.support.query_plans import plan_nodes

from duologue.cluster.postgres import PostgresServer
from duologue.store import conversations, fresh, history, messages, outcomes, prompts, replies, targets, users
from duologue.store.database import Database, open_database, run_once
from duologue.store.prepared import Prepared

USERS, CONVERSATIONS = 4, 8
MESSAGES = 12_000
"""So many that PostgreSQL, which chooses by cost, does not read whole tables because they are small."""

_FILL: Final = (
    f"""INSERT INTO users (id, tenant, userid, kind, name, created_at, updated_at)
        SELECT 'u' || n, 'default', 'user' || n, 'guest', '', {NOW}, {NOW}
        FROM generate_series(0, {MESSAGES // 4}) n""",
    f"""INSERT INTO tombstones (kind, id, tenant, deleted_at)
        SELECT 'message', 't' || n, 'default', {NOW} FROM generate_series(1, {MESSAGES // 4}) n""",
    f"""INSERT INTO conversations
        (id, tenant, user_id, status, settings, is_default, next_position, created_at, updated_at, last_activity_at)
        SELECT 'c' || n, 'default', 'u' || n, 'active', '{{}}', n % 2 = 0, 2, {NOW}, {NOW}, {NOW} + n
        FROM generate_series(0, {MESSAGES // 4}) n""",
    f"""INSERT INTO messages (id, tenant, user_id, conversation_id, role, position, generation, reply_to, turn, state,
        content, correlation_id, topic, partition, "offset", submitted_at, created_at, updated_at)
        SELECT 'm' || n, 'default', 'u' || n % {USERS}, 'c' || n % {CONVERSATIONS},
        CASE n % 2 WHEN 0 THEN 'assistant' ELSE 'user' END, n / {2 * CONVERSATIONS}, 1 - n % 2,
        CASE n % 2 WHEN 0 THEN 'm' || n - 1 END, n / {2 * CONVERSATIONS},
        CASE n % 2 WHEN 0 THEN 'complete' ELSE 'stored' END,
        'hello', '', 'topic', 0, n, {NOW}, {NOW}, {NOW} + n FROM generate_series(1, {MESSAGES}) n""",
    "ANALYZE",
)


def _fill(conn: Connection) -> None:
    for statement in _FILL:
        conn.exec_driver_sql(statement)


@pytest.fixture(scope="module")
def filled_postgres_url(session_postgres: PostgresServer) -> Iterator[str]:
    """A database of PostgreSQL with enough in it, for all tests of this module: none of them writes."""
    name = session_postgres.create_database("template")
    run_once(session_postgres.url(name), _fill)
    yield session_postgres.url(name)
    session_postgres.drop_database(name)


@pytest.fixture
async def postgres(filled_postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(filled_postgres_url) as opened:
        yield opened


@pytest.fixture
async def sqlite(sqlite_url: str) -> AsyncIterator[Database]:
    async with open_database(sqlite_url) as opened:
        yield opened


IDS = {"ids": ["m100", "m200"], "starting": ["m100"], "message_ids": ["m100"]}


def _bound(conn: Connection, statement: Prepared | sa.Select[Any]) -> tuple[str, tuple[Any, ...]]:
    prepared = statement if isinstance(statement, Prepared) else Prepared(statement)
    plan = prepared.plan(conn.dialect)
    values: dict[str, Any] = IDS | {"now": NOW, "owner": "me", "uid": "u3", "user_id": "user3", "tenant": "default"}
    values |= {"conversation_id": "c7", "at": NOW + 5000, "id": "c7", "limit": 9, "position": 500, "generation": 1}
    values |= {"character_id": "", "reply_id": "m100", "outcome": "complete", "text": ""}
    return plan.text, plan.bind(values)


def _plan(conn: Connection, statement: Prepared | sa.Select[Any]) -> list[str]:
    """Return the steps of SQLite's plan."""
    text, values = _bound(conn, statement)
    return [row[3] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]


def _nodes(conn: Connection, statement: Prepared | sa.Select[Any]) -> list[dict[str, Any]]:
    """Return the nodes of PostgreSQL's plan."""
    text, values = _bound(conn, statement)
    return plan_nodes(conn, text, values)


HOT: Final[dict[str, Prepared | sa.Select[Any]]] = {
    "fresh": fresh._READ,
    "lock": messages._LOCK,
    "known": messages._KNOWN,
    "claim": replies._CLAIM,
    "states": replies._STATES,
    "sources": prompts._SOURCES,
    "history": prompts._HISTORY,
    "held": outcomes._HELD,
    "complete": outcomes._COMPLETE,
    "published": outcomes._PUBLISHED,
    "outcomes": outcomes._OUTCOMES,
    "newest said": history._NEWEST_SAID,
    "said before": history._SAID_BEFORE,
    "said before a time": history._SAID_BEFORE_TIME,
    "changed after": history._CHANGED_AFTER,
    "changed before": history._CHANGED_BEFORE,
    "target": targets._TARGET,
    "user": users._FIND,
    "deleted user": users._FIND_DELETED,
    "deleted users": users._DELETED,
    "default conversation": conversations._DEFAULT,
    "owned conversation": conversations._OWNED,
    "conversations": conversations._LISTED,
}


@pytest.mark.parametrize("name", HOT)
async def test_plan_of_hot_statement_on_sqlite_scans_no_table(sqlite: Database, name: str) -> None:
    plan = await sqlite.read(_plan, HOT[name])
    scans = [step for step in plan if step.startswith("SCAN") and "json_each" not in step]
    assert scans == [], plan


@pytest.mark.parametrize("name", HOT)
async def test_plan_of_hot_statement_on_a_new_postgresql_scans_no_table(postgres_url: str, name: str) -> None:
    """A plan is kept while the tables grow, and statistics come minutes later."""
    async with open_database(postgres_url) as database:
        nodes = await database.read(_nodes, HOT[name])
    assert [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"] == []


async def test_claim_looks_for_smaller_turns_in_the_index_of_unfinished_replies(sqlite: Database) -> None:
    plan = await sqlite.read(_plan, replies._CLAIM)
    assert any("ix_messages_unfinished (conversation_id=? AND turn<?)" in step for step in plan), plan


async def test_history_for_a_prompt_is_a_range_of_positions(sqlite: Database) -> None:
    plan = await sqlite.read(_plan, prompts._HISTORY)
    expected = "ix_messages_conversation_id_position_generation (conversation_id=? AND position>? AND position<?)"
    assert any(expected in step for step in plan), plan


@pytest.mark.parametrize("statement", [history._CHANGED_AFTER, history._CHANGED_BEFORE])
async def test_changes_are_read_in_the_order_of_their_index(sqlite: Database, statement: sa.Select[Any]) -> None:
    plan = await sqlite.read(_plan, statement)
    assert any("ix_messages_user_id_updated_at_id" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


@pytest.mark.parametrize("statement", [history._NEWEST_SAID, history._SAID_BEFORE])
async def test_page_of_a_conversation_is_read_in_the_order_of_its_index(
    sqlite: Database, statement: sa.Select[Any]
) -> None:
    plan = await sqlite.read(_plan, statement)
    assert any("ix_messages_conversation_id_position_generation" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_default_conversation_is_found_by_its_unique_index(sqlite: Database) -> None:
    plan = await sqlite.read(_plan, conversations._DEFAULT)
    assert any("uq_conversations_default (user_id=? AND <expr>=?)" in step for step in plan), plan


@pytest.mark.parametrize("name", HOT)
async def test_plan_of_hot_statement_on_postgresql_scans_no_table(postgres: Database, name: str) -> None:
    nodes = await postgres.read(_nodes, HOT[name])
    scanned = [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] != "characters"]
    assert scanned == []


async def test_claim_on_postgresql_looks_for_smaller_turns_in_the_index_of_unfinished_replies(
    postgres: Database,
) -> None:
    nodes = await postgres.read(_nodes, replies._CLAIM)
    assert any(node.get("Index Name") == "ix_messages_unfinished" for node in nodes), nodes


async def test_history_for_a_prompt_on_postgresql_is_a_range_of_positions(postgres: Database) -> None:
    nodes = await postgres.read(_nodes, prompts._HISTORY)
    conditions = [
        node["Index Cond"]
        for node in nodes
        if node.get("Index Name") == "ix_messages_conversation_id_position_generation"
    ]
    assert any('"position" <' in condition and '"position" >=' in condition for condition in conditions), nodes


ORDERED: Final = {
    "changed after": "ix_messages_user_id_updated_at_id",
    "changed before": "ix_messages_user_id_updated_at_id",
    "newest said": "ix_messages_conversation_id_position_generation",
    "said before": "ix_messages_conversation_id_position_generation",
    "conversations": "ix_conversations_user_id_last_activity_at_id",
    "default conversation": "uq_conversations_default",
}


@pytest.mark.parametrize("name", ORDERED)
async def test_page_on_postgresql_is_read_in_the_order_of_its_index(postgres: Database, name: str) -> None:
    nodes = await postgres.read(_nodes, HOT[name])
    assert any(node.get("Index Name") == ORDERED[name] for node in nodes), nodes
    assert not any(node["Node Type"] in ("Sort", "Incremental Sort") for node in nodes), nodes
