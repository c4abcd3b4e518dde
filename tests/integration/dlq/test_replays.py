"""What comes of a replay: from a dead letter over the log to the user."""

from __future__ import annotations

import msgspec
import pytest
from tests.support.pipeline import Pipeline, until

from duologue.api.replays import Replays
from duologue.delivery.stream import Applied, DurableFrame
from duologue.domain.clock import wall_clock
from duologue.domain.errors import Rejected
from duologue.domain.ids import UserKey
from duologue.domain.records import INCOMING_TOPIC, RESPONSES_TOPIC, MessageSubmitted, encode
from duologue.engines.redis import RedisCommandError
from duologue.llm.port import ModelRefused
from duologue.log.dead_letters import unprocessed
from duologue.log.port import LogRecord, Partition
from duologue.store.dead_letters import (
    DeadLetter,
    DeadLetterFilter,
    DeadLetterSummary,
    begin_replay,
    keep_dead_letter,
    list_dead_letters,
    undo_replay,
)


def _replays(pipeline: Pipeline) -> Replays:
    return Replays(pipeline.database, pipeline.log.producer, wall_clock)


async def _letters(pipeline: Pipeline, count: int) -> list[DeadLetterSummary]:
    """Wait for that many letters that nobody has handled, and return them, the newest first."""

    async def found() -> list[DeadLetterSummary]:
        page = await pipeline.database.read(list_dead_letters, None, 10, DeadLetterFilter(state="open"))
        return page.items if len(page.items) == count else []

    letters: list[DeadLetterSummary] = await until(found)
    return letters


async def _failed(pipeline: Pipeline) -> tuple[MessageSubmitted, DeadLetterSummary]:
    """A message whose reply has failed, and its letter."""
    await pipeline.relay()
    await pipeline.consumer()
    pipeline.model.play(ModelRefused("no such model", cause="http_404"))
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await pipeline.answers(1)
    (letter,) = await _letters(pipeline, 1)
    return message, letter


async def test_replay_of_a_failed_reply_gives_the_user_the_answer_as_a_new_generation(pipeline: Pipeline) -> None:
    message, letter = await _failed(pipeline)
    await pipeline.say(await pipeline.conversation(), "something else since")  # it is not the last any more
    await pipeline.answers(2)
    done = await _replays(pipeline).replay(letter.id, by="eve", correlation_id="replay")
    assert (done.state, done.handled_by) == ("replayed", "eve")
    failure, _, answer = await pipeline.answers(3)
    assert (failure["code"], failure["attempt"]) == ("generation_failed", 1)
    assert (answer["message_id"], answer["generation"], answer["attempt"]) == (message.message_id, 2, 2)
    assert (answer["content"], answer["correlation_id"]) == ("You said: hello", "replay")


async def test_replay_appended_twice_has_one_effect(pipeline: Pipeline) -> None:
    """As if the first replay's process had died, or its log had been away, after the append."""
    await pipeline.relay()
    worker = await pipeline.consumer()
    pipeline.model.play(ModelRefused("no such model", cause="http_404"))
    message = await pipeline.say(await pipeline.conversation(), "hello")
    (letter,) = await _letters(pipeline, 1)
    await pipeline.answers(1)
    await worker.drain()
    begun = await pipeline.database.write(begin_replay, letter.id, "eve", wall_clock())
    await pipeline.append(pipeline.regenerate(message, 1))
    await pipeline.database.write(undo_replay, begun)
    await _replays(pipeline).replay(letter.id, by="bob", correlation_id="replay")
    await pipeline.consumer()
    await until(lambda: _all_done(pipeline, 3))
    assert [outcome["attempt"] for outcome in await pipeline.answers(2)] == [1, 2]


async def _all_done(pipeline: Pipeline, records: int) -> bool:
    return await pipeline.position() == records + 1


async def test_replay_that_fails_again_is_a_new_letter_which_can_be_replayed(pipeline: Pipeline) -> None:
    _, first = await _failed(pipeline)
    pipeline.model.play(ModelRefused("still none", cause="http_404"))
    await _replays(pipeline).replay(first.id, by="eve", correlation_id="replay")
    (second,) = await _letters(pipeline, 1)
    assert (second.error, second.attempt, second.message_id) == ("still none", 2, first.message_id)
    with pytest.raises(Rejected, match="was replayed by eve"):
        await _replays(pipeline).replay(first.id, by="eve", correlation_id="replay")
    await _replays(pipeline).replay(second.id, by="eve", correlation_id="replay")
    answer = (await pipeline.answers(3))[-1]
    assert (answer["generation"], answer["attempt"], answer["content"]) == (3, 3, "You said: hello")


async def test_replay_after_the_user_had_it_answered_again_says_so_and_appends_nothing(pipeline: Pipeline) -> None:
    message, letter = await _failed(pipeline)
    await pipeline.append(pipeline.regenerate(message, 1))
    await pipeline.answers(2)
    with pytest.raises(Rejected) as refused:
        await _replays(pipeline).replay(letter.id, by="eve", correlation_id="replay")
    assert refused.value.code == "dead_letter_superseded"
    await until(lambda: _all_done(pipeline, 2))


async def test_replay_of_a_record_that_still_cannot_be_read_is_a_new_letter(pipeline: Pipeline) -> None:
    await pipeline.relay()
    await pipeline.consumer()
    newer = msgspec.structs.replace(pipeline.message(await pipeline.conversation(), "from tomorrow"), v=99)
    await pipeline.append(newer)
    (letter,) = await _letters(pipeline, 1)
    await _replays(pipeline).replay(letter.id, by="eve", correlation_id="replay")
    (again,) = await _letters(pipeline, 1)
    assert (again.id != letter.id, again.offset, again.message_id) == (True, letter.offset + 1, newer.message_id)
    assert (await pipeline.records(INCOMING_TOPIC + ".dlq")) == [encode(newer)] * 2


async def test_replay_of_a_record_that_can_be_read_by_now_is_answered(pipeline: Pipeline) -> None:
    """As of a record of a newer version, after the upgrade."""
    await pipeline.relay()
    await pipeline.consumer()
    message = pipeline.message(await pipeline.conversation(), "hello")
    letter = DeadLetter(
        **unprocessed(_record(encode(message)), error="of a newer version", cause="unreadable", at=wall_clock())
    )
    await pipeline.database.write(keep_dead_letter, letter)
    (kept,) = await _letters(pipeline, 1)
    await _replays(pipeline).replay(kept.id, by="eve", correlation_id="replay")
    (answer,) = await pipeline.answers(1)
    assert (answer["message_id"], answer["generation"]) == (message.message_id, 1)


def _record(value: bytes) -> LogRecord:
    return LogRecord(Partition(INCOMING_TOPIC, 0), 4711, "key", value, {}, 0)


async def test_replay_of_a_refused_outcome_brings_it_to_the_user_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pipeline.relay()
    await pipeline.consumer()
    apply = pipeline.streams.apply

    async def refusing(user: UserKey, frames: list[DurableFrame]) -> list[Applied]:
        if any(b"You said" in frame.frame for frame in frames):
            raise RedisCommandError("ERR for its data")
        return await apply(user, frames)

    monkeypatch.setattr(pipeline.streams, "apply", refusing)
    await pipeline.say(await pipeline.conversation(), "hello")
    (letter,) = await _letters(pipeline, 1)
    assert (letter.topic, letter.cause, letter.user_id) == (RESPONSES_TOPIC, "refused_by_redis", "alice")
    monkeypatch.setattr(pipeline.streams, "apply", apply)
    await _replays(pipeline).replay(letter.id, by="eve", correlation_id="replay")
    (answer,) = await pipeline.answers(1)
    assert (answer["content"], answer["generation"]) == ("You said: hello", 1)
