"""Answering a message again: generations, repeats, crashes, and what happens at the same time."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.support.pipeline import BOB, Pipeline, reply_states, until

from duologue.domain.ids import new_id
from duologue.domain.records import INCOMING_TOPIC, MessageSubmitted
from duologue.llm.port import ModelRefused
from duologue.llm.scripted import Pause


async def _done(pipeline: Pipeline, records: int) -> None:
    """Wait until that many records of the log are done."""
    await until(lambda: _at(pipeline, records + 1))


async def _at(pipeline: Pipeline, position: int) -> bool:
    return await pipeline.position(INCOMING_TOPIC) == position


async def _answered(pipeline: Pipeline) -> tuple[MessageSubmitted, dict[str, Any]]:
    """Return a message and its first answer, "first"."""
    pipeline.model.play("first")
    message = await pipeline.say(await pipeline.conversation(), "hello")
    (answer,) = await pipeline.answers(1)
    assert (answer["content"], answer["attempt"], answer["generation"]) == ("first", 1, 1)
    return message, answer


async def test_regenerated_reply_is_a_new_generation_under_the_next_attempt(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    message, first = await _answered(pipeline)
    pipeline.model.play("second")
    async with pipeline.listening() as frames:
        await pipeline.append(pipeline.regenerate(message, 1))
        _, second = await pipeline.answers(2)
        await until(lambda: any(frame["type"] == "response" for frame in frames))
    assert (second["content"], second["attempt"], second["generation"]) == ("second", 2, 2)
    assert second["message_id"] == message.message_id
    assert second["reply_id"] != first["reply_id"]
    assert second["correlation_id"] == f"regenerate-{message.client_id}"
    (reset,) = [frame for frame in frames if frame["type"] == "reset"]
    assert (reset["reason"], reset["attempt"]) == ("regenerate", 2)
    assert [frame["type"] for frame in await pipeline.durable()] == ["echo", "response", "response"]
    assert await reply_states(pipeline, ["complete", "complete"])
    assert [turn.content for turn in pipeline.model.prompts[1].messages if turn.role != "system"] == ["hello"]
    await _done(pipeline, 2)


async def test_regenerate_that_comes_twice_has_one_effect(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    message, _ = await _answered(pipeline)
    pause = Pause()
    pipeline.model.play("second", pause)
    await pipeline.append(pipeline.regenerate(message, 1))
    await pause.reached.wait()
    await pipeline.append(pipeline.regenerate(message, 1))  # two devices, or a resend
    pause.open()
    await pipeline.answers(2)
    await pipeline.append(pipeline.regenerate(message, 1))
    await _done(pipeline, 4)
    assert len(pipeline.model.prompts) == 2
    assert len(await pipeline.answers(2)) == 2


async def test_regenerate_of_an_attempt_that_is_not_the_current_one_has_no_effect(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    message, _ = await _answered(pipeline)
    other = await pipeline.conversation()
    bobs = pipeline.message(await pipeline.conversation(BOB), "mine", BOB)
    record = pipeline.regenerate(message, 1)
    await pipeline.append(
        pipeline.regenerate(message, 7),
        pipeline.regenerate(message, 0),
        msgspec.structs.replace(record, conversation_id=other.id),
        msgspec.structs.replace(record, uid=bobs.uid, user_id=bobs.user_id),
        msgspec.structs.replace(record, message_id=new_id()),
        pipeline.message(other, "next"),
    )
    await pipeline.answers(2)
    await _done(pipeline, 7)
    assert len(pipeline.model.prompts) == 2


async def test_regenerate_of_an_unfinished_reply_has_no_effect(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("first", pause)
    await pipeline.consumer()
    await pipeline.relay()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    behind = pipeline.message(await pipeline.conversation(BOB), "behind it", BOB)
    await pipeline.append(pipeline.regenerate(message, 1), behind)
    await pipeline.answers(1, BOB)  # so the one before it was read while the reply was unfinished
    pause.open()
    await _done(pipeline, 3)
    assert len(pipeline.model.prompts) == 2


async def test_regenerate_takes_its_turn_behind_what_came_before_it(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    message, _ = await _answered(pipeline)
    pause = Pause()
    pipeline.model.play("answer to two", pause)
    conversation_id = message.conversation_id
    two = pipeline.message(await pipeline.conversation(), "two")
    await pipeline.append(msgspec.structs.replace(two, conversation_id=conversation_id))
    await pause.reached.wait()
    await pipeline.append(pipeline.regenerate(message, 1))
    await until(lambda: pipeline.stored(3))
    assert len(pipeline.model.prompts) == 2
    pause.open()
    answers = await pipeline.answers(3)
    assert [(each["generation"], each["attempt"]) for each in answers] == [(1, 1), (1, 1), (2, 2)]
    assert [turn.content for turn in pipeline.model.prompts[2].messages if turn.role != "system"] == ["hello"]


async def test_regenerated_reply_of_a_dead_worker_is_taken_over(pipeline: Pipeline) -> None:
    first = await pipeline.consumer()
    await pipeline.relay()
    message, _ = await _answered(pipeline)
    pause = Pause()
    pipeline.model.play("lost ", pause)
    await pipeline.append(pipeline.regenerate(message, 1))
    await pause.reached.wait()
    await first.crash()
    pipeline.model.play("second")
    await pipeline.consumer()
    answers = await pipeline.answers(2)
    assert [(each["content"], each["attempt"], each["generation"]) for each in answers] == [
        ("first", 1, 1),
        ("second", 3, 2),
    ]
    await _done(pipeline, 2)


async def test_regenerate_read_again_after_its_answer_is_published_asks_nobody(pipeline: Pipeline) -> None:
    first = await pipeline.consumer()
    await pipeline.relay()
    message, _ = await _answered(pipeline)
    await _done(pipeline, 1)
    first.commits.pulled = True
    await pipeline.append(pipeline.regenerate(message, 1))
    await pipeline.answers(2)
    await first.crash()
    await pipeline.consumer()
    await _done(pipeline, 2)
    assert len(pipeline.model.prompts) == 2
    assert len(await pipeline.answers(2)) == 2


async def test_failed_reply_can_be_regenerated_and_a_failed_generation_leaves_the_earlier_one(
    pipeline: Pipeline,
) -> None:
    pipeline.model.play(ModelRefused("no", cause="http_400"))
    pipeline.model.play("second")
    pipeline.model.play(ModelRefused("no", cause="http_400"))
    await pipeline.consumer()
    await pipeline.relay()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    assert (await pipeline.answers(1))[0]["code"] == "generation_failed"
    await pipeline.append(pipeline.regenerate(message, 1))
    assert (await pipeline.answers(2))[1]["content"] == "second"
    await pipeline.append(pipeline.regenerate(message, 2))
    failed = (await pipeline.answers(3))[2]
    assert (failed["code"], failed["attempt"]) == ("generation_failed", 3)
    assert await reply_states(pipeline, ["failed", "complete", "failed"])
    next_message = pipeline.message(await pipeline.conversation(), "next")
    await pipeline.append(msgspec.structs.replace(next_message, conversation_id=message.conversation_id))
    await pipeline.answers(4)
    assert [turn.content for turn in pipeline.model.prompts[-1].messages if turn.role != "system"] == [
        "hello",
        "second",
        "next",
    ]


async def test_stop_behind_a_regenerate_ends_that_one_and_one_before_it_does_not(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    message, _ = await _answered(pipeline)
    pause = Pause()
    pipeline.model.play("sec", pause, "ond")
    await pipeline.append(pipeline.stop(message), pipeline.regenerate(message, 1))
    await pause.reached.wait()
    await pipeline.append(pipeline.stop(message))
    second = (await pipeline.answers(2))[1]
    assert (second["content"], second["finish_reason"], second["attempt"]) == ("sec", "stopped", 2)
    pipeline.model.play("third")
    await pipeline.append(pipeline.regenerate(message, 2))
    third = (await pipeline.answers(3))[2]
    assert (third["content"], third["attempt"], third["generation"]) == ("third", 3, 3)
    await _done(pipeline, 5)


async def test_stop_of_a_waiting_regenerate_ends_it_empty_under_an_attempt_of_its_own(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    message, _ = await _answered(pipeline)
    pause = Pause()
    pipeline.model.play("answer to two", pause)
    two = pipeline.message(await pipeline.conversation(), "two")
    await pipeline.append(msgspec.structs.replace(two, conversation_id=message.conversation_id))
    await pause.reached.wait()
    await pipeline.append(pipeline.regenerate(message, 1), pipeline.stop(message))
    stopped = (await pipeline.answers(2))[1]
    assert (stopped["message_id"], stopped["content"]) == (message.message_id, "")
    assert (stopped["attempt"], stopped["generation"], stopped["finish_reason"]) == (2, 2, "stopped")
    pause.open()
    await _done(pipeline, 4)
    assert len(pipeline.model.prompts) == 2
