"""Hot statements in the words of both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import asyncpg

from duologue.store import fresh, messages, outcomes, prompts, replies
from duologue.store.prepared import Prepared, is_one_of
from duologue.store.schema import METADATA
from duologue.store.schema import messages as table

POSTGRESQL = asyncpg.dialect()  # type: ignore[no-untyped-call]
SQLITE = sqlite.dialect()
HOT = [
    fresh._READ,
    messages._LOCK,
    messages._KNOWN,
    messages._INSERT,
    messages._GROW,
    replies._CLAIM,
    replies._LEAVE,
    replies._STATES,
    prompts._SOURCES,
    prompts._HISTORY,
    outcomes._HELD,
    outcomes._COMPLETE,
    outcomes._PUBLISHED,
]


@pytest.mark.parametrize("statement", HOT)
@pytest.mark.parametrize("dialect", [POSTGRESQL, SQLITE])
def test_hot_statement_compiles_for_both_databases(statement: Prepared, dialect: Dialect) -> None:
    assert statement.plan(dialect).text


def test_list_parameter_is_json_on_sqlite_and_an_array_on_postgresql() -> None:
    statement = Prepared(sa.select(table.c.turn).where(is_one_of(table.c.id)))
    on_sqlite, on_postgresql = statement.plan(SQLITE), statement.plan(POSTGRESQL)
    assert on_sqlite.text.endswith("WHERE messages.id IN (SELECT value FROM json_each(?))")
    assert on_sqlite.bind({"ids": ["a", "b"]}) == ('["a", "b"]',)
    assert on_postgresql.text.endswith("WHERE messages.id = ANY($1::TEXT[])")
    assert on_postgresql.bind({"ids": ["a", "b"]}) == (["a", "b"],)


def test_conversations_are_locked_in_the_order_of_their_ids_on_postgresql() -> None:
    on_postgresql = messages._LOCK.plan(POSTGRESQL).text
    assert on_postgresql.index("ORDER BY") < on_postgresql.index("FOR UPDATE")
    assert "FOR UPDATE" not in messages._LOCK.plan(SQLITE).text


def test_claim_is_one_statement_that_counts_from_the_row_itself() -> None:
    text = replies._CLAIM.plan(POSTGRESQL).text
    assert text.startswith("UPDATE messages")
    assert "WHEN (messages.attempt > " in text
    assert "THEN messages.attempt" in text


def test_handover_is_compared_with_the_databases_clock_on_postgresql_and_with_the_callers_on_sqlite() -> None:
    assert "leaving_until <= CAST(extract(epoch FROM clock_timestamp()) * 1000" in replies._CLAIM.plan(POSTGRESQL).text
    assert "leaving_until <= ?" in replies._CLAIM.plan(SQLITE).text


def test_tables_can_be_created_on_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    statements = [str(sa.schema.CreateTable(each).compile(dialect=dialect)) for each in METADATA.sorted_tables]
    assert any("metadata JSONB" in statement for statement in statements)


def test_statement_with_a_list_of_values_is_refused() -> None:
    statement = Prepared(sa.select(table.c.id).where(table.c.id.in_(["a"])))
    with pytest.raises(AssertionError):
        statement.plan(SQLITE)
