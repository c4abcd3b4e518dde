"""Further generations, and ends before their time, on both databases."""

from __future__ import annotations

import asyncio

from tests.integration.store.scenario import NOW, Scenario, ended

from duologue.domain.records import MessageSubmitted, RegenerateRequested, ReplyCompleted
from duologue.store.deletion import delete_conversation
from duologue.store.messages import Incoming, Refused, Stored, StoredRequest
from duologue.store.replies import mark_leaving
from duologue.store.stops import Seized, stop_unwritten


def _again(ada: Scenario, said: Incoming, attempt: int) -> Incoming:
    """A record that asks for another answer to what was said."""
    assert isinstance(said.record, MessageSubmitted)
    record = RegenerateRequested(
        tenant=said.record.tenant,
        user_id=said.record.user_id,
        uid=said.record.uid,
        message_id=said.record.message_id,
        conversation_id=said.record.conversation_id,
        attempt=attempt,
        requested_at=NOW + 20,
        correlation_id="again",
    )
    return Incoming(record, "incoming_messages", 0, next(ada.offsets))


def _requested(entry: Stored) -> StoredRequest:
    assert isinstance(entry, StoredRequest)
    return entry


async def _answered_once(ada: Scenario) -> tuple[Incoming, StoredRequest]:
    said = ada.says("one")
    (entry,) = await ada.store(said)
    (held,) = await ada.claim(_requested(entry))
    await ada.finish(ended(held, "first"))
    return said, _requested(entry)


async def test_regenerate_of_the_current_attempt_stores_the_next_generation(ada: Scenario) -> None:
    said, first = await _answered_once(ada)
    (entry,) = await ada.store(_again(ada, said, 1), now=NOW + 30)
    second = _requested(entry)
    assert (second.generation, second.turn, second.position, second.state) == (2, 2, first.position, "queued")
    assert (second.message_id, second.content, second.client_id) == (first.message_id, "one", first.client_id)
    assert (second.submitted_at, second.correlation_id, second.fresh) == (NOW + 20, "again", True)
    (held,) = await ada.claim(second)
    assert (held.attempt, held.taken_over) == (2, False)
    (two,) = await ada.asked("two")
    assert (two.position, two.turn) == (2, 3)


async def test_copy_of_a_regenerate_finds_the_generation_that_it_made(ada: Scenario) -> None:
    said, _ = await _answered_once(ada)
    one, two = await ada.store(_again(ada, said, 1), _again(ada, said, 1))
    (three,) = await ada.store(_again(ada, said, 1))
    assert {_requested(each).reply_id for each in (one, two, three)} == {_requested(one).reply_id}
    assert [_requested(each).fresh for each in (one, two, three)] == [True, False, False]


async def test_regenerate_of_another_attempt_is_superseded(ada: Scenario) -> None:
    said, request = await _answered_once(ada)
    assert await ada.store(_again(ada, said, 2)) == [Refused(request.message_id, "superseded")]
    (entry,) = await ada.store(_again(ada, said, 1))
    (held,) = await ada.claim(_requested(entry))
    assert await ada.store(_again(ada, said, held.attempt)) == [Refused(request.message_id, "superseded")]
    await ada.finish(ended(held, "second"))
    (third,) = await ada.store(_again(ada, said, held.attempt))
    assert _requested(third).generation == 3


async def test_regenerate_of_what_is_not_there_is_refused(ada: Scenario) -> None:
    said, request = await _answered_once(ada)
    unknown = ada.says("never stored")
    assert await ada.store(_again(ada, unknown, 1)) == [Refused(unknown.record.message_id, "message_unknown")]
    elsewhere = ada.says("one", await ada.another_conversation())
    assert await ada.store(_again(ada, elsewhere, 1)) == [Refused(request.message_id, "other_conversation")]
    await ada.database.write(delete_conversation, ada.user.uid, ada.conversation.id, NOW)
    assert await ada.store(_again(ada, said, 1)) == [Refused(request.message_id, "conversation_deleted")]


async def test_stop_of_a_reply_that_waits_ends_it_empty(ada: Scenario) -> None:
    one, two = await ada.asked("one", "two")
    stopped = await ada.database.write(stop_unwritten, two.reply_id, "me", NOW + 40, seize=True)
    assert isinstance(stopped, ReplyCompleted)
    assert (stopped.reply_id, stopped.content, stopped.finish_reason) == (two.reply_id, "", "stopped")
    assert (stopped.attempt, stopped.completed_at, stopped.model) == (1, NOW + 40, "")
    assert await ada.claim(two) == []
    again = await ada.database.write(stop_unwritten, two.reply_id, "me", NOW + 50, seize=True)
    assert again is None  # what has an outcome is published in its turn
    assert len(await ada.claim(one)) == 1


async def test_stop_of_a_reply_that_somebody_writes_takes_it_over_even_from_one_who_leaves(ada: Scenario) -> None:
    (one,) = await ada.asked("one")
    (held,) = await ada.claim(one)
    await ada.database.write(mark_leaving, {one.reply_id: held.attempt}, 60_000, NOW)
    assert await ada.database.write(stop_unwritten, one.reply_id, "me", NOW, seize=False) is None
    assert await ada.database.write(stop_unwritten, one.reply_id, "me", NOW, seize=True) == Seized(2)
    assert await ada.finish(ended(held, "too late")) == set()
    assert await ada.finish(ended(held, "shown", "stopped", attempt=2)) == {one.reply_id}


async def test_stop_and_claim_at_the_same_time_leave_one_holder(ada: Scenario) -> None:
    for number in range(20):
        (request,) = await ada.asked(f"message {number}")
        stopped, held = await asyncio.gather(
            ada.database.write(stop_unwritten, request.reply_id, "me", NOW, seize=True), ada.claim(request)
        )
        if isinstance(stopped, Seized):
            assert stopped.attempt == 2
            assert [each.attempt for each in held] == [1]
            await ada.finish(ended(held[0], "fenced"), ended(held[0], "shown", "stopped", attempt=2))
        else:
            assert isinstance(stopped, ReplyCompleted)
            assert held == []
