"""How replies end: once, by the attempt that holds (rules Commit, Try and attempt)."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario, ended

from duologue.domain.records import ReplyCompleted, ReplyFailed, Usage
from duologue.store.dead_letters import DeadLetter, count_dead_letters
from duologue.store.deletion import delete_user
from duologue.store.outcomes import Completion, ReplyError, mark_published, outcome
from duologue.store.replies import advance_attempt
from duologue.store.schema import messages


def _content(conn: Connection, reply_id: str) -> str | None:
    return conn.scalar(sa.select(messages.c.content).where(messages.c.id == reply_id))


def _published(conn: Connection) -> list[str]:
    return list(conn.scalars(sa.select(messages.c.id).where(messages.c.published)))


async def test_completion_of_held_attempt_is_stored(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    assert await ada.finish(ended(held, "answer")) == {request.reply_id}
    assert await ada.database.read(_content, request.reply_id) == "answer"


async def test_completion_of_overtaken_attempt_is_dropped(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (old,) = await ada.claim(request, owner="old")
    (new,) = await ada.claim(request, owner="new")
    assert await ada.finish(ended(old, "late")) == set()
    assert await ada.finish(ended(new, "in time")) == {request.reply_id}
    assert await ada.finish(ended(old, "later still")) == set()
    assert await ada.database.read(_content, request.reply_id) == "in time"


async def test_second_completion_of_one_attempt_is_dropped(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    await ada.finish(ended(held, "first"))
    assert await ada.finish(ended(held, "", "failed")) == set()
    assert await ada.database.read(_content, request.reply_id) == "first"


async def test_two_completions_of_one_reply_in_one_batch_store_the_held_one(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    next_attempt = await ada.database.write(advance_attempt, request.reply_id, held.attempt, NOW)
    assert next_attempt == 2
    stored = await ada.finish(ended(held, "old"), ended(held, "new", attempt=next_attempt))
    assert stored == {request.reply_id}
    assert await ada.database.read(_content, request.reply_id) == "new"


async def test_batch_of_completions_stores_those_that_hold(ada: Scenario) -> None:
    other = await ada.another_conversation()
    await ada.store(ada.says("one"), ada.says("two", other))
    one, two = await ada.asked("one"), await ada.store(ada.says("two", other))
    held_one, held_two = await ada.claim(*one, *two)  # type: ignore[arg-type]
    await ada.claim(one[0] if one[0].reply_id == held_one.reply_id else two[0], owner="new")  # type: ignore[arg-type]
    assert await ada.finish(ended(held_one, "late"), ended(held_two, "fine")) == {held_two.reply_id}


async def test_completion_that_was_never_claimed_is_dropped(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    never = Completion(reply_id=request.reply_id, attempt=0, state="complete", completed_at=NOW, content="x")
    assert await ada.finish(never) == set()


async def test_completion_for_deleted_user_is_dropped(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    await ada.database.write(delete_user, ada.user.uid, NOW)
    assert await ada.finish(ended(held, "answer")) == set()


async def test_publish_marks_go_with_a_later_batch(ada: Scenario) -> None:
    one = await ada.answered("one", "answer")
    (two,) = await ada.asked("two")
    (held,) = await ada.claim(two)
    await ada.finish(ended(held, "answer"), published=[one.reply_id])
    assert await ada.database.read(_published) == [one.reply_id]


async def test_outcome_of_complete_reply_is_its_record(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    completion = msgspec.structs.replace(
        ended(held, "answer"), model="small", finish_reason="length", usage=Usage(1, 2, 3), processing_time_ms=40
    )
    await ada.finish(completion)
    assert await ada.database.read(outcome, [request.reply_id]) == [
        ReplyCompleted(
            tenant="default",
            user_id="ada",
            uid=ada.user.uid,
            reply_id=request.reply_id,
            message_id=request.message_id,
            conversation_id=ada.conversation.id,
            attempt=1,
            generation=1,
            completed_at=NOW + 10,
            correlation_id=request.correlation_id,
            metadata={"said": "one"},
            content="answer",
            model="small",
            finish_reason="length",
            processing_time_ms=40,
            usage=Usage(1, 2, 3),
        )
    ]


async def test_outcome_of_failed_reply_is_its_record(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    error = ReplyError("http_503", "The model did not answer.", temporary=True)
    await ada.finish(msgspec.structs.replace(ended(held, "", "failed"), error=error))
    (record,) = await ada.database.read(outcome, [request.reply_id])
    assert isinstance(record, ReplyFailed)
    assert (record.cause, record.reason, record.temporary) == ("http_503", "The model did not answer.", True)


async def test_outcome_of_stopped_reply_says_so(ada: Scenario) -> None:
    request = await ada.answered("one", "half an ans", "stopped")
    (record,) = await ada.database.read(outcome, [request.reply_id])
    assert isinstance(record, ReplyCompleted)
    assert (record.finish_reason, record.content) == ("stopped", "half an ans")


async def test_outcomes_come_in_turn_without_the_published_and_unfinished(ada: Scenario) -> None:
    done = [await ada.answered(question, "answer") for question in ("one", "two", "three")]
    (waiting,) = await ada.asked("four")
    await ada.database.write(mark_published, [done[0].reply_id])
    ids = [each.reply_id for each in (waiting, *reversed(done))]
    records = await ada.database.read(outcome, ids)
    assert [record.reply_id for record in records] == [done[1].reply_id, done[2].reply_id]


async def test_dead_letters_are_kept_with_the_completion(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    (held,) = await ada.claim(request)
    letter = DeadLetter(
        topic="incoming_messages",
        partition=0,
        offset=1,
        key=ada.conversation.id,
        value=b"\x00original",
        size=9,
        headers={},
        error="every try failed",
        cause="http_503",
        tries=7,
        first_at=NOW,
        last_at=NOW,
    )
    await ada.finish(ended(held, "", "failed"))
    await ada.database.write(_complete_with_letter, letter)
    await ada.database.write(_complete_with_letter, letter)
    assert await ada.database.read(count_dead_letters) == 1


def _complete_with_letter(conn: Connection, letter: DeadLetter) -> None:
    from duologue.store.outcomes import complete

    complete(conn, [], [], NOW, [letter])
