"""Storing new messages and claiming their replies in two statements: what takes that way, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario, add_version

from duologue.domain.records import RegenerateRequested
from duologue.store.database import Database, StoreRefused
from duologue.store.deletion import delete_conversation, delete_message, delete_user
from duologue.store.fresh import Begun, store_fresh
from duologue.store.messages import Incoming, StoredRequest
from duologue.store.replies import ClaimState, claim_with_prompts, read_claims, store_and_claim
from duologue.store.schema import conversations, messages

_OWN = frozenset({"id", "user_id", "conversation_id", "reply_to", "offset"})
"""Columns in which the messages of two users differ."""


async def fresh(ada: Scenario, *batch: Incoming, start: Collection[int] = (0,)) -> list[Begun | None]:
    return await ada.database.autocommit(store_fresh, batch, start, "me", NOW)


def begun_of(entry: Begun | None) -> Begun:
    assert entry is not None
    return entry


def _rows(conn: Connection, user_id: str) -> list[dict[str, Any]]:
    query = sa.select(messages).where(messages.c.user_id == user_id)
    rows = conn.execute(query.order_by(messages.c.position, messages.c.generation)).mappings()
    return [{name: value for name, value in row.items() if name not in _OWN} for row in rows]


def _counters(conn: Connection, conversation_id: str) -> tuple[Any, ...]:
    names = ("title", "next_position", "next_turn", "last_activity_at", "updated_at")
    query = sa.select(*(conversations.c[name] for name in names)).where(conversations.c.id == conversation_id)
    return tuple(conn.execute(query).one())


async def rows_of(ada: Scenario) -> list[dict[str, Any]]:
    return await ada.database.read(_rows, ada.user.uid)


async def counters_of(ada: Scenario) -> tuple[Any, ...]:
    return await ada.database.read(_counters, ada.conversation.id)


async def test_store_fresh_of_new_messages_leaves_what_store_and_claim_leaves(database: Database) -> None:
    ada, bob = await Scenario.open(database, "ada"), await Scenario.open(database, "bob")
    begun = await fresh(ada, ada.says("one"), ada.says("two"), start={0, 1})
    batch, start = [bob.says("one"), bob.says("two")], {0, 1}
    stored, claimed = await database.write(store_and_claim, batch, start, "me", NOW)
    same = {"reply_id": "", "message_id": "", "conversation_id": "", "user_id": "", "uid": ""}
    assert [msgspec.structs.replace(begun_of(each).stored, **same) for each in begun] == [
        msgspec.structs.replace(each, **same) for each in stored if isinstance(each, StoredRequest)
    ]
    claims = [msgspec.structs.replace(each.claim, reply_id="") for each in begun if each is not None and each.claim]
    assert claims == [msgspec.structs.replace(each, reply_id="") for each in claimed]
    assert await rows_of(ada) == await rows_of(bob)
    assert await counters_of(ada) == await counters_of(bob)


async def test_store_fresh_asks_the_model_what_a_claim_would_ask(ada: Scenario) -> None:
    await ada.answered("one", "first answer")
    failed = await ada.answered("two", "", "failed")
    await ada.database.write(add_version, failed, 2, "complete", "second answer, second version")
    (entry,) = await fresh(ada, ada.says("three"))
    claim = begun_of(entry).claim
    assert claim is not None
    (again,) = await ada.database.write(claim_with_prompts, [claim.reply_id], "another", NOW)
    assert claim.prompt == again.prompt
    assert [turn.content for turn in claim.prompt.history] == [
        "one",
        "first answer",
        "two",
        "second answer, second version",
    ]
    assert (again.attempt, again.taken_over) == (2, True)


async def test_store_fresh_claims_nothing_that_it_was_not_told_to(ada: Scenario) -> None:
    (entry,) = await fresh(ada, ada.says("one"), start=())
    request = begun_of(entry).stored
    assert begun_of(entry).claim is None
    assert await ada.database.read(read_claims, [request.reply_id]) == {request.reply_id: ClaimState(0, "queued")}


async def test_store_fresh_behind_an_unfinished_reply_stores_and_claims_nothing(ada: Scenario) -> None:
    await ada.asked("one")
    (entry,) = await fresh(ada, ada.says("two"))
    assert begun_of(entry).claim is None
    assert begun_of(entry).stored.turn == 2


async def test_store_fresh_behind_a_message_that_is_not_to_start_claims_nothing(ada: Scenario) -> None:
    one, two = await fresh(ada, ada.says("one"), ada.says("two"), start={1})
    assert (begun_of(one).claim, begun_of(two).claim) == (None, None)


async def test_store_fresh_of_two_conversations_claims_both(ada: Scenario) -> None:
    other = await ada.another_conversation()
    one, two = await fresh(ada, ada.says("one"), ada.says("two", other), start={0, 1})
    assert begun_of(one).claim is not None
    assert begun_of(two).claim is not None


async def test_store_fresh_of_a_known_message_leaves_the_batch(ada: Scenario) -> None:
    other = await ada.another_conversation()
    await ada.asked("one")
    before = await rows_of(ada)
    assert await fresh(ada, ada.says("two", other), ada.says("one")) == [None, None]
    assert await rows_of(ada) == before


async def test_store_fresh_of_two_copies_leaves_their_conversation_only(ada: Scenario) -> None:
    other = await ada.another_conversation()
    entries = await fresh(ada, ada.says("one"), ada.says("two", other), ada.says("one"), ada.says("three"))
    assert [entry and entry.stored.content for entry in entries] == [None, "two", None, None]


async def test_store_fresh_beside_a_request_for_another_answer_leaves_their_conversation_only(ada: Scenario) -> None:
    other = await ada.another_conversation()
    request = await ada.answered("one", "answer")
    record = RegenerateRequested(
        tenant=ada.user.tenant,
        user_id=ada.user.user_id,
        uid=ada.user.uid,
        message_id=request.message_id,
        conversation_id=request.conversation_id,
        attempt=1,
        requested_at=NOW,
        correlation_id="again",
    )
    again = Incoming(record, "incoming_messages", 0, 100)
    entries = await fresh(ada, again, ada.says("two"), ada.says("three", other))
    assert [entry and entry.stored.content for entry in entries] == [None, None, "three"]


async def _delete_message(ada: Scenario) -> None:
    await ada.asked("one")
    await ada.database.write(delete_message, ada.user.uid, ada.id_of("one"), NOW)


async def _delete_conversation(ada: Scenario) -> None:
    await ada.database.write(delete_conversation, ada.user.uid, ada.conversation.id, NOW)


async def _delete_user(ada: Scenario) -> None:
    await ada.database.write(delete_user, ada.user.uid, NOW)


@pytest.mark.parametrize("delete", [_delete_message, _delete_conversation, _delete_user])
async def test_store_fresh_into_what_was_deleted_stores_nothing(
    ada: Scenario, delete: Callable[[Scenario], Awaitable[None]]
) -> None:
    await delete(ada)
    assert await fresh(ada, ada.says("one")) == [None]
    assert await rows_of(ada) == []


async def test_store_fresh_into_another_users_conversation_stores_nothing(database: Database) -> None:
    ada, eve = await Scenario.open(database, "ada"), await Scenario.open(database, "eve")
    entries = await fresh(eve, eve.says("one", ada.conversation), eve.says("two"), start={0, 1})
    assert [entry and entry.stored.content for entry in entries] == [None, "two"]
    assert await rows_of(ada) == []


async def test_store_fresh_of_data_that_the_database_refuses_stores_nothing(ada: Scenario) -> None:
    other = await ada.another_conversation()
    with pytest.raises(StoreRefused):
        await fresh(ada, ada.says("fine", other), msgspec.structs.replace(ada.says("bad"), offset=2**63))
    assert await rows_of(ada) == []
    assert await counters_of(ada) == (None, 1, 1, NOW, NOW)


async def test_store_fresh_of_many_workers_at_once_keeps_positions_dense_and_claims_one(ada: Scenario) -> None:
    batches = [[ada.says(f"{worker} {number}") for number in range(3)] for worker in range(8)]
    tries = [ada.database.autocommit(store_fresh, batch, {0}, "me", NOW) for batch in batches]
    entries = [entry for entries in await asyncio.gather(*tries) for entry in entries if entry is not None]
    assert sorted(entry.stored.position for entry in entries) == list(range(1, len(entries) + 1))
    assert sorted(entry.stored.turn for entry in entries) == list(range(1, len(entries) + 1))
    assert [entry.stored.turn for entry in entries if entry.claim is not None] == [1]
    assert (await counters_of(ada))[1] == len(entries) + 1
