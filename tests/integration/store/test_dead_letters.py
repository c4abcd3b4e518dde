"""Dead letters: kept once, shown newest first, replayed by one operator at a time, dropped for good."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario, add_version, ended

from duologue.domain.errors import Rejected
from duologue.log.dead_letters import MAX_KEPT_BYTES
from duologue.store.database import Database
from duologue.store.dead_letters import (
    REPLAY_LEASE_MS,
    DeadLetter,
    DeadLetterFilter,
    begin_replay,
    count_dead_letters,
    drop_dead_letter,
    end_replay,
    insert_dead_letters,
    keep_dead_letter,
    list_dead_letters,
    read_dead_letter,
    undo_replay,
)
from duologue.store.deletion import delete_conversation, delete_message, delete_user
from duologue.store.messages import StoredRequest
from duologue.store.migrate import alembic_config
from duologue.store.schema import dead_letters

VALUE = b"\xff\x00 bytes as they were"


def _letter(offset: int = 1, **fields: Any) -> DeadLetter:
    known: dict[str, Any] = {
        "topic": "incoming_messages",
        "partition": 0,
        "offset": offset,
        "key": "conversation",
        "value": VALUE,
        "size": len(VALUE),
        "headers": {"correlation_id": "c"},
        "error": "cannot be read",
        "cause": "unreadable",
        "tries": 1,
        "first_at": NOW,
        "last_at": NOW + offset,
    }
    return DeadLetter(**known | fields)


async def _kept(database: Database, letter: DeadLetter) -> str:
    """Keep a letter; return its id."""
    await database.write(keep_dead_letter, letter)
    return next(
        row.id for row in (await database.read(list_dead_letters, None, 100)).items if row.offset == letter.offset
    )


async def _failed(ada: Scenario, offset: int = 1) -> tuple[StoredRequest, str]:
    """A message whose reply has failed, and the id of its letter."""
    request = await ada.answered(f"question {offset}", "", "failed")
    letter = _letter(
        offset,
        tenant=ada.user.tenant,
        uid=ada.user.uid,
        message_id=request.message_id,
        conversation_id=request.conversation_id,
        attempt=1,
        cause="http_503",
    )
    return request, await _kept(ada.database, letter)


async def _state(database: Database, letter_id: str) -> str:
    return (await database.read(read_dead_letter, letter_id)).state


async def _refusal(database: Database, letter_id: str, now: int = NOW) -> str:
    with pytest.raises(Rejected) as refused:
        await database.write(begin_replay, letter_id, "eve", now)
    return refused.value.code


async def test_letter_comes_back_as_it_went_in(database: Database) -> None:
    row = await database.read(read_dead_letter, await _kept(database, _letter()))
    assert {name: getattr(row, name) for name in DeadLetter.__struct_fields__} == msgspec.structs.asdict(_letter())
    assert (row.state, row.handled_at, row.handled_by, row.user_id) == ("open", None, None, None)


async def test_letter_as_large_as_is_kept_comes_back(database: Database) -> None:
    letter = _letter(value=b"x" * MAX_KEPT_BYTES, size=MAX_KEPT_BYTES + 1)
    row = await database.read(read_dead_letter, await _kept(database, letter))
    assert (len(row.value), row.size) == (MAX_KEPT_BYTES, MAX_KEPT_BYTES + 1)


async def test_letter_kept_again_is_one(database: Database) -> None:
    await database.write(insert_dead_letters, [_letter(1), _letter(2)])
    await database.write(insert_dead_letters, [_letter(2), _letter(3)])
    await database.write(insert_dead_letters, [])
    await database.write(keep_dead_letter, _letter(3))
    assert await database.read(count_dead_letters) == 3


async def test_letter_unknown_is_not_found(database: Database) -> None:
    assert await _refusal(database, "nothing") == "dead_letter_not_found"
    with pytest.raises(Rejected, match="no such dead letter"):
        await database.write(drop_dead_letter, "nothing", "eve", NOW)


async def test_list_in_pages_is_newest_first(database: Database) -> None:
    await database.write(insert_dead_letters, [_letter(offset) for offset in range(5)])
    first = await database.read(list_dead_letters, None, 3)
    second = await database.read(list_dead_letters, first.next_cursor, 3)
    assert [row.offset for row in [*first.items, *second.items]] == [4, 3, 2, 1, 0]
    assert second.next_cursor is None


async def test_list_with_filters_has_what_meets_all_of_them(ada: Scenario, database: Database) -> None:
    _, failed = await _failed(ada, 1)
    await _kept(database, _letter(2))
    await _kept(database, _letter(3, topic="responses", cause="refused_by_redis"))
    dropped = await _kept(database, _letter(4))
    await database.write(drop_dead_letter, dropped, "eve", NOW)

    async def found(**which: Any) -> list[int]:
        page = await database.read(list_dead_letters, None, 10, DeadLetterFilter(**which))
        return [row.offset for row in page.items]

    assert await found(state="dropped") == [4]
    assert await found(topic="responses") == [3]
    assert await found(topic="incoming_messages", cause="unreadable", state="open") == [2]
    assert await found(user="ada") == [1]
    assert await found(user="nobody") == []
    row = await database.read(read_dead_letter, failed)
    assert (row.user_id, row.uid) == ("ada", ada.user.uid)


async def test_replay_begun_twice_at_once_is_begun_by_one(database: Database) -> None:
    letter_id = await _kept(database, _letter())
    attempts = [database.write(begin_replay, letter_id, name, NOW) for name in ("eve", "bob", "sue")]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Rejected)]
    assert [refusal.code for refusal in refused] == ["dead_letter_replaying"] * 2
    assert await _state(database, letter_id) == "replaying"


async def test_replay_that_ended_is_not_repeated(database: Database) -> None:
    letter_id = await _kept(database, _letter())
    begun = await database.write(begin_replay, letter_id, "eve", NOW)
    assert begun.letter.value == VALUE
    await database.write(end_replay, letter_id)
    row = await database.read(read_dead_letter, letter_id)
    assert (row.state, row.handled_by) == ("replayed", "eve")
    assert row.handled_at is not None
    assert await _refusal(database, letter_id, NOW + REPLAY_LEASE_MS * 2) == "dead_letter_replayed"


async def test_replay_that_was_undone_can_be_begun_again(database: Database) -> None:
    letter_id = await _kept(database, _letter())
    await database.write(undo_replay, await database.write(begin_replay, letter_id, "eve", NOW))
    row = await database.read(read_dead_letter, letter_id)
    assert (row.state, row.handled_at, row.handled_by) == ("open", None, None)
    await database.write(begin_replay, letter_id, "bob", NOW)


async def _open(database: Database) -> list[str]:
    page = await database.read(list_dead_letters, None, 10, DeadLetterFilter(state="open"), NOW)
    return [row.id for row in page.items]


def _begun_long_ago(conn: Connection, letter_id: str) -> None:
    at = dead_letters.c.handled_at - REPLAY_LEASE_MS - 1000
    conn.execute(sa.update(dead_letters).where(dead_letters.c.id == letter_id).values(handled_at=at))


async def test_replay_whose_process_died_can_be_begun_again_after_its_time(database: Database) -> None:
    letter_id = await _kept(database, _letter())
    dead = await database.write(begin_replay, letter_id, "eve", NOW)
    assert await _open(database) == []
    await database.write(_begun_long_ago, letter_id)
    assert await _open(database) == [letter_id]
    await database.write(begin_replay, letter_id, "bob", NOW + 1)
    await database.write(undo_replay, dead)  # it was not dead after all, and has failed: the other one goes on
    assert await _state(database, letter_id) == "replaying"
    await database.write(end_replay, letter_id)
    assert await _state(database, letter_id) == "replayed"


async def test_replay_of_a_failed_reply_that_still_stands_is_begun(ada: Scenario, database: Database) -> None:
    request, letter_id = await _failed(ada)
    begun = await database.write(begin_replay, letter_id, "eve", NOW)
    assert (begun.letter.message_id, begun.letter.attempt) == (request.message_id, 1)


@pytest.mark.parametrize("state", ["queued", "generating", "complete"])
async def test_replay_of_a_failed_reply_that_was_asked_again_is_refused(
    ada: Scenario, database: Database, state: str
) -> None:
    request, letter_id = await _failed(ada)
    await database.write(add_version, request, 2, state)
    assert await _refusal(database, letter_id) == "dead_letter_superseded"
    assert await _state(database, letter_id) == "open"


async def test_replay_of_an_outcome_is_begun_only_if_it_is_the_last(ada: Scenario, database: Database) -> None:
    request = await ada.answered("hello", "hi")
    about = {"topic": "responses", "message_id": request.message_id, "attempt": 1}
    last, earlier = await _kept(database, _letter(1, **about)), await _kept(database, _letter(2, **about))
    await database.write(begin_replay, last, "eve", NOW)
    await database.write(add_version, request, 2, "queued")
    assert await _refusal(database, earlier) == "dead_letter_superseded"


async def test_replay_of_a_deleted_message_is_refused(ada: Scenario, database: Database) -> None:
    (request,) = await ada.asked("hello")
    letter_id = await _kept(database, _letter())
    await database.write(_make_about, letter_id, request.message_id)
    await database.write(_bury_only, ada, request)
    assert await _refusal(database, letter_id) == "dead_letter_superseded"


def _make_about(conn: Connection, letter_id: str, message_id: str) -> None:
    conn.execute(sa.update(dead_letters).where(dead_letters.c.id == letter_id).values(message_id=message_id))


def _bury_only(conn: Connection, ada: Scenario, request: StoredRequest) -> None:
    """Delete a message while a letter about it is kept: as if it came between the two."""
    letters = conn.execute(sa.select(dead_letters)).mappings().all()
    assert delete_message(conn, ada.user.uid, request.message_id, NOW)
    conn.execute(sa.insert(dead_letters), [dict(letter) for letter in letters])


async def test_replay_of_a_record_kept_in_part_is_refused(database: Database) -> None:
    letter_id = await _kept(database, _letter(size=100_000_000))
    assert await _refusal(database, letter_id) == "dead_letter_incomplete"


async def test_drop_leaves_the_row_and_nothing_of_the_record(database: Database) -> None:
    letter_id = await _kept(database, _letter())
    for _ in range(2):
        dropped = await database.write(drop_dead_letter, letter_id, "eve", NOW)
        assert (dropped.state, dropped.handled_by) == ("dropped", "eve")
    row = await database.read(read_dead_letter, letter_id)
    assert (row.value, row.headers, row.size) == (b"", {}, len(VALUE))
    assert await _refusal(database, letter_id) == "dead_letter_dropped"
    await database.write(keep_dead_letter, _letter())  # the record is read again
    assert [row.state for row in (await database.read(list_dead_letters, None, 10)).items] == ["dropped"]


async def test_drop_of_a_letter_that_is_being_replayed_is_refused(database: Database) -> None:
    letter_id = await _kept(database, _letter())
    await database.write(begin_replay, letter_id, "eve", NOW)
    with pytest.raises(Rejected) as refused:
        await database.write(drop_dead_letter, letter_id, "bob", NOW)
    assert refused.value.code == "dead_letter_replaying"
    await database.write(end_replay, letter_id)
    assert (await database.write(drop_dead_letter, letter_id, "bob", NOW)).state == "dropped"


async def test_deleting_removes_the_letters_about_what_is_deleted(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    await _failed(bob, 1)
    request, _ = await _failed(ada, 2)
    await database.write(delete_message, ada.user.uid, request.message_id, NOW)
    assert await database.read(count_dead_letters) == 1
    await _failed(ada, 3)
    await database.write(delete_conversation, ada.user.uid, ada.conversation.id, NOW)
    assert await database.read(count_dead_letters) == 1
    # A record that the store refused: its message was never stored, only its bytes tell whose it is.
    await _kept(database, _letter(4, uid=bob.user.uid, message_id="m"))
    await database.write(delete_user, bob.user.uid, NOW)
    assert await database.read(count_dead_letters) == 0


async def test_letter_about_what_was_deleted_is_not_kept(ada: Scenario, database: Database) -> None:
    (request,) = await ada.asked("hello")
    other = await ada.another_conversation()
    await database.write(delete_message, ada.user.uid, request.message_id, NOW)
    await database.write(delete_conversation, ada.user.uid, other.id, NOW)
    await database.write(keep_dead_letter, _letter(1, message_id=request.message_id))
    await database.write(keep_dead_letter, _letter(2, conversation_id=other.id))
    await database.write(delete_user, ada.user.uid, NOW)
    await database.write(keep_dead_letter, _letter(3, uid=ada.user.uid))
    assert await database.read(count_dead_letters) == 0
    await database.write(keep_dead_letter, _letter(4, uid="nobody", conversation_id="made up"))
    assert await database.read(count_dead_letters) == 1


async def test_migration_tells_what_earlier_letters_are_about(ada: Scenario, database: Database) -> None:
    request, _ = await _failed(ada)
    await _kept(database, _letter(2))
    (held,) = await ada.claim(*await ada.asked("another"))
    await ada.finish(ended(held, "fine"))
    before = (await database.read(list_dead_letters, None, 10)).items
    await database.write(_migrate_down_and_up)
    after = (await database.read(list_dead_letters, None, 10)).items
    assert after == before
    assert after[1].conversation_id == request.conversation_id


def _migrate_down_and_up(conn: Connection) -> None:
    from alembic import command

    command.downgrade(alembic_config(conn), "0001")
    command.upgrade(alembic_config(conn), "head")
