"""Storing what users say: once, in the order of the log (rules Order, Conversations, Users)."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario, ended

from duologue.store.conversations import owned_conversation
from duologue.store.database import Database, StoreRefused
from duologue.store.deletion import delete_conversation, delete_message, delete_user
from duologue.store.messages import Refused, StoredRequest
from duologue.store.schema import messages


def _rows(conn: Connection) -> list[tuple[str, int, int, str, int]]:
    columns = (messages.c.role, messages.c.position, messages.c.generation, messages.c.content, messages.c.offset)
    rows = conn.execute(sa.select(*columns).order_by(messages.c.position, messages.c.generation))
    return [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


async def test_batch_of_new_messages_is_stored_in_log_order_with_dense_positions(ada: Scenario) -> None:
    first = await ada.asked("one", "two")
    second = await ada.asked("three")
    assert [(each.position, each.turn) for each in [*first, *second]] == [(1, 1), (2, 2), (3, 3)]
    assert await ada.database.read(_rows) == [
        ("user", 1, 0, "one", 1),
        ("assistant", 1, 1, "", 1),
        ("user", 2, 0, "two", 2),
        ("assistant", 2, 1, "", 2),
        ("user", 3, 0, "three", 3),
        ("assistant", 3, 1, "", 3),
    ]


async def test_request_of_new_message_tells_what_the_record_said(ada: Scenario) -> None:
    incoming = ada.says("hello")
    (request,) = await ada.store(incoming)
    assert isinstance(request, StoredRequest)
    assert request.reply_id
    assert (request.message_id, request.uid, request.user_id) == (ada.id_of("hello"), ada.user.uid, "ada")
    assert (request.state, request.attempt, request.generation, request.fresh) == ("queued", 0, 1, True)
    assert (request.content, request.metadata, request.client_id) == ("hello", {"said": "hello"}, "hello")
    assert (request.correlation_id, request.submitted_at) == (incoming.record.correlation_id, NOW - 5)


async def test_messages_of_two_conversations_in_one_batch_have_positions_of_their_own(ada: Scenario) -> None:
    other = await ada.another_conversation()
    entries = await ada.store(ada.says("a"), ada.says("b", other), ada.says("c"))
    assert [entry.position for entry in entries if isinstance(entry, StoredRequest)] == [1, 1, 2]


async def test_redelivered_batch_changes_nothing(ada: Scenario) -> None:
    stored = await ada.asked("one", "two")
    before = await ada.database.read(_rows)
    again = await ada.asked("one", "two")
    assert await ada.database.read(_rows) == before
    assert [each.fresh for each in again] == [False, False]
    assert [each.reply_id for each in again] == [each.reply_id for each in stored]


async def test_copy_of_stored_message_returns_its_request_as_it_stands(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    await ada.finish(ended(held, "answer"))
    await ada.finish(published=[request.reply_id])
    (copy,) = await ada.asked("one")
    assert (copy.state, copy.attempt, copy.published, copy.fresh) == ("complete", 1, True, False)
    assert (copy.content, copy.metadata, copy.user_id) == ("one", {"said": "one"}, "ada")


async def test_copy_within_one_batch_is_stored_once(ada: Scenario) -> None:
    first, copy, other = await ada.asked("one", "one", "two")
    assert (first.fresh, copy.fresh, other.fresh) == (True, False, True)
    assert first.reply_id == copy.reply_id
    assert (first.position, other.position) == (1, 2)


async def test_copy_in_another_conversation_is_refused(ada: Scenario) -> None:
    other = await ada.another_conversation()
    await ada.asked("one")
    entries = await ada.store(ada.says("one", other))
    same_batch = await ada.store(ada.says("two", other), ada.says("two"))
    assert entries == [Refused(ada.id_of("one"), "other_conversation")]
    assert same_batch[1] == Refused(ada.id_of("two"), "other_conversation")


async def test_message_for_unknown_conversation_is_refused(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    entries = await ada.store(ada.says("mine, I say", bob.conversation))
    assert entries == [Refused(ada.id_of("mine, I say"), "conversation_unknown")]


async def test_message_for_deleted_conversation_is_refused_and_its_copies_elsewhere_too(ada: Scenario) -> None:
    await ada.asked("one")
    assert await ada.database.write(delete_conversation, ada.user.uid, ada.conversation.id, NOW)
    other = await ada.another_conversation()
    entries = await ada.store(ada.says("one"), ada.says("two"), ada.says("one", other))
    assert [entry.reason for entry in entries if isinstance(entry, Refused)] == [
        "conversation_deleted",
        "conversation_deleted",
        "message_deleted",
    ]
    assert await ada.database.read(_rows) == []


async def test_deleted_message_is_not_revived_by_a_copy(ada: Scenario) -> None:
    await ada.answered("one", "answer")
    assert await ada.database.write(delete_message, ada.user.uid, ada.id_of("one"), NOW)
    assert not await ada.database.write(delete_message, ada.user.uid, ada.id_of("one"), NOW)
    assert await ada.store(ada.says("one")) == [Refused(ada.id_of("one"), "message_deleted")]
    assert [each.position for each in await ada.asked("two")] == [2]


async def test_message_of_deleted_user_is_refused(ada: Scenario) -> None:
    await ada.asked("one")
    assert await ada.database.write(delete_user, ada.user.uid, NOW)
    assert not await ada.database.write(delete_user, ada.user.uid, NOW)
    entries = await ada.store(ada.says("one"), ada.says("two"))
    assert [entry.reason for entry in entries if isinstance(entry, Refused)] == ["user_deleted", "user_deleted"]
    assert await ada.database.read(_rows) == []


async def test_refused_record_does_not_keep_its_neighbours_from_being_stored(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    entries = await ada.store(ada.says("one"), ada.says("stray", bob.conversation), ada.says("two"))
    assert [getattr(entry, "position", None) for entry in entries] == [1, None, 2]


async def test_batch_that_fails_for_its_data_is_undone_as_a_whole(ada: Scenario) -> None:
    bad = msgspec.structs.replace(ada.says("bad"), offset=2**63)
    with pytest.raises(StoreRefused):
        await ada.store(ada.says("good"), bad)
    assert await ada.database.read(_rows) == []
    assert [each.position for each in await ada.asked("good")] == [1]


async def test_title_is_made_of_the_first_message_and_stays(ada: Scenario) -> None:
    await ada.asked("What is\n the weather\tlike?", "And tomorrow?")
    row = await ada.database.read(owned_conversation, ada.user.uid, ada.conversation.id)
    assert row is not None
    assert row.title == "What is the weather like?"


async def test_storing_moves_the_conversations_last_activity(ada: Scenario) -> None:
    await ada.asked("one", now=NOW + 77)
    row = await ada.database.read(owned_conversation, ada.user.uid, ada.conversation.id)
    assert row is not None
    assert row.last_activity_at == NOW + 77
