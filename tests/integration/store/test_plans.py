"""Hot statements go by an index, never through the table, and never sort a conversation."""

from __future__ import annotations

from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario

from duologue.store import conversations, history, messages, outcomes, prompts, replies, users
from duologue.store.prepared import Prepared

IDS = {"ids": ["a", "b"]}


def _plan(conn: Connection, statement: Prepared | sa.Select[Any]) -> list[str]:
    prepared = statement if isinstance(statement, Prepared) else Prepared(statement)
    plan = prepared.plan(conn.dialect)
    values = IDS | {"now": NOW, "owner": "me", "uid": "u", "conversation_id": "c", "at": 1, "id": "i", "limit": 9}
    values |= {"position": 1, "generation": 1}
    rows = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {plan.text}", plan.bind(values))
    return [row[3] for row in rows]


HOT: Final[dict[str, Prepared | sa.Select[Any]]] = {
    "lock": messages._LOCK,
    "known": messages._KNOWN,
    "claim": replies._CLAIM,
    "states": replies._STATES,
    "sources": prompts._SOURCES,
    "history": prompts._HISTORY,
    "fence": outcomes._FENCE,
    "complete": outcomes._COMPLETE,
    "published": outcomes._PUBLISHED,
    "outcomes": outcomes._OUTCOMES,
    "newest said": history._NEWEST_SAID,
    "said before": history._SAID_BEFORE,
    "changed after": history._CHANGED_AFTER,
    "changed before": history._CHANGED_BEFORE,
    "user": users._FIND,
    "deleted user": users._FIND_DELETED,
    "deleted users": users._DELETED,
    "default conversation": conversations._DEFAULT,
    "owned conversation": conversations._OWNED,
    "conversations": conversations._LISTED,
}


@pytest.mark.parametrize("name", HOT)
async def test_plan_of_hot_statement_scans_no_table(ada: Scenario, name: str) -> None:
    plan = await ada.database.read(_plan, HOT[name])
    scans = [step for step in plan if step.startswith("SCAN") and "json_each" not in step]
    assert scans == [], plan


async def test_claim_looks_for_smaller_turns_in_the_index_of_unfinished_replies(ada: Scenario) -> None:
    plan = await ada.database.read(_plan, replies._CLAIM)
    assert any("ix_messages_unfinished (conversation_id=? AND turn<?)" in step for step in plan), plan


async def test_history_for_a_prompt_is_a_range_of_positions(ada: Scenario) -> None:
    plan = await ada.database.read(_plan, prompts._HISTORY)
    expected = "ix_messages_conversation_id_position_generation (conversation_id=? AND position>? AND position<?)"
    assert any(expected in step for step in plan), plan


@pytest.mark.parametrize("statement", [history._CHANGED_AFTER, history._CHANGED_BEFORE])
async def test_changes_are_read_in_the_order_of_their_index(ada: Scenario, statement: sa.Select[Any]) -> None:
    plan = await ada.database.read(_plan, statement)
    assert any("ix_messages_user_id_updated_at_id" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


@pytest.mark.parametrize("statement", [history._NEWEST_SAID, history._SAID_BEFORE])
async def test_page_of_a_conversation_is_read_in_the_order_of_its_index(
    ada: Scenario, statement: sa.Select[Any]
) -> None:
    plan = await ada.database.read(_plan, statement)
    assert any("ix_messages_conversation_id_position_generation" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_default_conversation_is_found_by_its_unique_index(ada: Scenario) -> None:
    plan = await ada.database.read(_plan, conversations._DEFAULT)
    assert any("uq_conversations_default (user_id=? AND <expr>=?)" in step for step in plan), plan
