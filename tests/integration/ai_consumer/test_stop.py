"""Stopping replies: running, waiting, begun elsewhere, and finished ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import pytest
from tests.support.pipeline import BOB, Pipeline, reply_states, until

from duologue.domain.ids import new_id
from duologue.domain.records import INCOMING_TOPIC
from duologue.llm.port import ModelEvent, ModelRequest, ModelTemporaryError
from duologue.llm.scripted import Pause, ScriptedModel


async def _done(pipeline: Pipeline, records: int) -> None:
    """Wait until that many records of the log are done."""
    await until(lambda: _at(pipeline, records + 1))


async def _at(pipeline: Pipeline, position: int) -> bool:
    return await pipeline.position(INCOMING_TOPIC) == position


async def test_stop_of_a_running_reply_ends_the_request_and_keeps_what_was_written(pipeline: Pipeline) -> None:
    pipeline.model.play("one ", "two ", Pause(), "three")
    await pipeline.consumer()
    await pipeline.relay()
    async with pipeline.listening() as frames:
        message = await pipeline.say(await pipeline.conversation(), "hello")
        await until(lambda: "two" in "".join(frame.get("content", "") for frame in frames if frame["type"] == "delta"))
        await pipeline.append(pipeline.stop(message))
        (answer,) = await pipeline.answers(1)
    assert (answer["type"], answer["finish_reason"]) == ("response", "stopped")
    assert (answer["content"], answer["attempt"], answer["generation"]) == ("one two ", 1, 1)
    assert (pipeline.model.running, pipeline.model.abandoned) == (0, 1)
    await _done(pipeline, 2)
    assert await reply_states(pipeline, ["stopped"])


async def test_stop_before_the_first_token_leaves_an_empty_reply(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play(pause, "late")
    await pipeline.consumer()
    await pipeline.relay()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    await pipeline.append(pipeline.stop(message))
    (answer,) = await pipeline.answers(1)
    assert (answer["finish_reason"], answer["content"]) == ("stopped", "")
    assert pipeline.model.running == 0


class _Lingering(ScriptedModel):
    """A model whose requests take their time to end."""

    def __init__(self) -> None:
        super().__init__()
        self.ending, self.may_end = asyncio.Event(), asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        try:
            async with aclosing(super().stream(request)) as events:
                async for event in events:
                    yield event
        except asyncio.CancelledError:
            self.ending.set()
            await self.may_end.wait()
            raise


async def test_stop_that_comes_while_an_earlier_one_takes_effect_changes_nothing(pipeline: Pipeline) -> None:
    model = _Lingering()
    pause = Pause()
    model.play("text", pause)
    await pipeline.consumer(model)
    await pipeline.relay()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    await pipeline.append(pipeline.stop(message))
    await model.ending.wait()
    await pipeline.append(pipeline.stop(message))
    await pipeline.say(await pipeline.conversation(), "next")
    assert (await pipeline.answers(1))[0]["content"] == "You said: next"
    model.may_end.set()
    assert [answer["finish_reason"] for answer in await pipeline.answers(2)] == ["stop", "stopped"]
    await _done(pipeline, 4)


async def test_stop_between_two_tries_ends_the_reply_without_another(pipeline: Pipeline) -> None:
    pipeline.model.play(ModelTemporaryError("busy", cause="http_503", retry_after_seconds=30.0))
    await pipeline.consumer()
    await pipeline.relay()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await pipeline.model.asked(1)
    await pipeline.append(pipeline.stop(message))
    (answer,) = await pipeline.answers(1)
    assert answer["finish_reason"] == "stopped"
    assert len(pipeline.model.prompts) == 1


async def test_stop_of_a_waiting_reply_cancels_it_and_the_running_one_goes_on(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("first", pause)
    await pipeline.consumer()
    await pipeline.relay()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "one")
    await pause.reached.wait()
    waiting = await pipeline.say(conversation, "two")
    await until(lambda: pipeline.stored(2))
    await pipeline.append(pipeline.stop(waiting))
    (cancelled,) = await pipeline.answers(1)
    assert (cancelled["message_id"], cancelled["content"]) == (waiting.message_id, "")
    assert (cancelled["finish_reason"], cancelled["attempt"]) == ("stopped", 1)
    pause.open()
    answers = await pipeline.answers(2)
    assert answers[1]["content"] == "first"
    assert len(pipeline.model.prompts) == 1
    await pipeline.say(conversation, "three")
    assert (await pipeline.answers(3))[2]["content"] == "You said: three"
    await _done(pipeline, 4)


async def test_stop_that_comes_with_its_message_leaves_an_empty_reply(pipeline: Pipeline) -> None:
    message = pipeline.message(await pipeline.conversation(), "hello")
    await pipeline.append(message, pipeline.stop(message))
    await pipeline.consumer()
    await pipeline.relay()
    (answer,) = await pipeline.answers(1)
    assert (answer["finish_reason"], answer["content"]) == ("stopped", "")
    assert not pipeline.model.prompts
    await _done(pipeline, 2)


async def test_stop_of_a_finished_reply_changes_nothing(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    conversation = await pipeline.conversation()
    message = await pipeline.say(conversation, "hello")
    (answer,) = await pipeline.answers(1)
    await pipeline.append(pipeline.stop(message))
    await _done(pipeline, 2)
    assert await pipeline.answers(1) == [answer]
    assert await reply_states(pipeline, ["complete"])


async def test_stop_with_another_conversation_or_user_has_no_effect(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("whole", pause)
    await pipeline.consumer()
    await pipeline.relay()
    conversation, other = await pipeline.conversation(), await pipeline.conversation()
    bobs = pipeline.message(await pipeline.conversation(BOB), "mine", BOB)
    message = await pipeline.say(conversation, "hello")
    await pause.reached.wait()
    stop = pipeline.stop(message)
    await pipeline.append(
        msgspec.structs.replace(stop, conversation_id=other.id),
        msgspec.structs.replace(stop, uid=bobs.uid, user_id=bobs.user_id),
        msgspec.structs.replace(stop, message_id=new_id()),
        pipeline.message(other, "next"),
    )
    assert (await pipeline.answers(1))[0]["content"] == "You said: next"
    pause.open()
    assert (await pipeline.answers(2))[1]["content"] == "whole"


async def test_stop_of_what_a_dead_worker_had_begun_keeps_the_text_that_was_shown(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("shown ", pause, "never")
    first = await pipeline.consumer()
    await pipeline.relay()
    async with pipeline.listening() as frames:
        message = await pipeline.say(await pipeline.conversation(), "hello")
        await pause.reached.wait()
        await until(lambda: any(frame["type"] == "delta" for frame in frames))
    await first.crash()
    await pipeline.append(pipeline.stop(message))
    await pipeline.consumer()
    (answer,) = await pipeline.answers(1)
    assert (answer["finish_reason"], answer["content"], answer["attempt"]) == ("stopped", "shown ", 2)
    assert len(pipeline.model.prompts) == 1
    await _done(pipeline, 2)


async def test_stop_of_what_the_earlier_owner_finishes_in_peace_ends_it_now(pipeline: Pipeline) -> None:
    pipeline.model.play("shown ", Pause())
    first = await pipeline.consumer(drain_seconds=30.0)
    await pipeline.relay()
    async with pipeline.listening() as frames:
        message = await pipeline.say(await pipeline.conversation(), "hello")
        await until(lambda: any(frame["type"] == "delta" for frame in frames))
        await first.role._intake.on_revoked(list(first.role._intake._holdings))
        first.role._intake.finish()
        await until(lambda: not first.role.assigned)
        await pipeline.consumer()
        await pipeline.append(pipeline.stop(message))
        (answer,) = await pipeline.answers(1)
    assert (answer["finish_reason"], answer["content"], answer["attempt"]) == ("stopped", "shown ", 2)
    await until(lambda: pipeline.model.running == 0)  # although its model says nothing more
    assert await pipeline.answers(1) == [answer]


async def test_stop_of_one_of_several_stored_replies_leaves_them_in_their_order(pipeline: Pipeline) -> None:
    first = await pipeline.consumer()
    await pipeline.relay()
    first.appends.pulled = True  # as when the log goes away: what ends is stored, and not published
    conversation = await pipeline.conversation()
    said = [await pipeline.say(conversation, content) for content in ("one", "two", "three", "four")]
    await until(lambda: reply_states(pipeline, ["complete"] * 4))
    await first.crash()
    await pipeline.append(pipeline.stop(said[2]), pipeline.stop(said[3]))
    await pipeline.consumer()
    answers = await pipeline.answers(4)
    assert [answer["content"].removeprefix("You said: ") for answer in answers] == ["one", "two", "three", "four"]
    await _done(pipeline, 6)


async def test_stop_of_a_stored_reply_lets_no_later_one_of_its_conversation_go_first(pipeline: Pipeline) -> None:
    first = await pipeline.consumer()
    await pipeline.relay()
    first.appends.pulled = True  # what ends is stored, and not published
    conversation = await pipeline.conversation()
    said = [await pipeline.say(conversation, content) for content in ("one", "two")]
    await until(lambda: reply_states(pipeline, ["complete"] * 2))
    await first.crash()
    await pipeline.append(pipeline.message(conversation, "three"), pipeline.stop(said[1]))
    asked = Pause()
    await pipeline.consumer(pauses={"stop_unwritten": asked})
    await asked.reached.wait()
    await pipeline.answers(1)
    asked.open()
    answers = await pipeline.answers(3)
    assert [answer["content"].removeprefix("You said: ") for answer in answers] == ["one", "two", "three"]
    await _done(pipeline, 4)


async def test_stop_survives_a_crash_right_after_it_was_read(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("shown ", pause)
    first = await pipeline.consumer()
    await pipeline.relay()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    first.store.pulled = True
    await pipeline.append(pipeline.stop(message))
    await until(lambda: pipeline.model.running == 0)
    await first.crash()
    await pipeline.consumer()
    (answer,) = await pipeline.answers(1)
    assert answer["finish_reason"] == "stopped"
    assert len(pipeline.model.prompts) == 1


@pytest.mark.parametrize("first", ["stop", "end"])
async def test_stop_and_end_at_the_same_time_leave_one_outcome(pipeline: Pipeline, first: str) -> None:
    pause = Pause()
    pipeline.model.play("text", pause)
    await pipeline.consumer()
    await pipeline.relay()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    if first == "end":
        pause.open()
        await pipeline.append(pipeline.stop(message))
    else:
        await pipeline.append(pipeline.stop(message))
        pause.open()
    await _done(pipeline, 2)
    (answer,) = await pipeline.answers(1)
    assert answer["content"] == "text"
    assert answer["finish_reason"] in ("stop", "stopped")
    await asyncio.sleep(0)
    assert len(await pipeline.answers(1)) == 1
