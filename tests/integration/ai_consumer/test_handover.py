"""From one owner of the log to the next, and between attempts: who may end a reply, and what is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.support.pipeline import ALICE, Pipeline, until

from duologue.domain.clock import wall_clock
from duologue.domain.records import INCOMING_TOPIC, MessageSubmitted
from duologue.llm.port import ModelTemporaryError
from duologue.llm.scripted import Pause, ScriptedModel
from duologue.store.messages import Incoming, StoredRequest
from duologue.store.outcomes import Completion, complete
from duologue.store.replies import claim, store_and_claim


async def test_owner_that_gave_its_partition_up_finishes_and_commits_nothing(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("leaving ", pause, "words")
    first = await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "one")
    await pause.reached.wait()
    await first.role._intake.on_revoked(list(first.role._intake._holdings))
    pause.open()
    (answer,) = await pipeline.answers(1)
    assert (answer["content"], answer["attempt"]) == ("leaving words", 1)
    await first.drain()  # its last chance to commit
    assert await pipeline.position() == 1
    untouched = ScriptedModel()
    await pipeline.consumer(untouched)
    await until(lambda: at(pipeline, 2))
    assert len(await pipeline.answers(1)) == 1
    assert untouched.prompts == []


async def test_reply_of_an_owner_that_died_while_leaving_is_taken_over_once_its_time_is_up(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("leaving ", pause)
    first = await pipeline.consumer(drain_seconds=1.0)
    await pipeline.say(await pipeline.conversation(), "one")
    await pause.reached.wait()
    leaves_at = wall_clock()
    await first.role._intake.on_revoked(list(first.role._intake._holdings))
    await first.crash()
    second = ScriptedModel([["taken over"]])
    async with pipeline.listening() as frames:
        await pipeline.consumer(second)
        (answer,) = await pipeline.answers(1)
        await until(lambda: any(frame["type"] == "response" for frame in frames))
    assert (answer["content"], answer["attempt"]) == ("taken over", 2)
    assert wall_clock() >= leaves_at + 1000
    assert [frame["reason"] for frame in frames if frame["type"] == "reset"] == ["takeover"]
    await until(lambda: at(pipeline, 2))


async def test_reply_that_outlasts_the_time_of_its_leaving_is_stopped(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("leaving ", pause)
    first = await pipeline.consumer(drain_seconds=0.3)
    await pipeline.say(await pipeline.conversation(), "one")
    await pause.reached.wait()
    leaves_at = asyncio.get_running_loop().time()
    await first.role._intake.on_revoked(list(first.role._intake._holdings))
    await until(lambda: pipeline.model.running == 0)
    assert asyncio.get_running_loop().time() - leaves_at >= 0.29
    ((attempt, state),) = (await pipeline.replies()).values()
    assert (attempt, state) == (1, "generating")


async def test_try_that_fails_after_another_worker_claimed_the_reply_says_nothing_more(pipeline: Pipeline) -> None:
    """A failure checks the attempt as a completion does: the one that was overtaken ends without outcome."""
    await pipeline.relay()
    pause = Pause()
    failure = ModelTemporaryError("the provider is unwell", cause="http_503", retry_after_seconds=0.0)
    pipeline.model.play("mine ", pause, failure)
    pipeline.model.play("again")
    await pipeline.consumer(model_max_tries=1)  # so that this failure would be the outcome
    await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    (reply_id,) = (await pipeline.replies()).keys()
    await pipeline.database.write(claim, [reply_id], "another", wall_clock())
    pause.open()
    (answer,) = await pipeline.answers(1)
    assert (answer["type"], answer["content"], answer["attempt"]) == ("response", "again", 3)
    assert [frame["type"] for frame in await pipeline.durable()] == ["echo", "response"]


async def test_further_try_of_a_reply_that_another_worker_claimed_is_not_made(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    failure = ModelTemporaryError("the provider is unwell", cause="http_503", retry_after_seconds=0.0)
    pipeline.model.play("mine ", pause, failure)
    running = await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    await until(lambda: shown(pipeline))
    (reply_id,) = (await pipeline.replies()).keys()
    await pipeline.database.write(claim, [reply_id], "another", wall_clock())
    running.commits.pulled = True  # so that it cannot verify that it owns the log, and waits
    pause.open()
    await until(lambda: running.role._dispatcher.running == 0)
    assert len(pipeline.model.prompts) == 1
    assert await pipeline.replies() == {reply_id: (2, "generating")}
    assert await pipeline.position() == 1


async def test_fenced_worker_that_owns_the_log_no_more_claims_nothing_again(pipeline: Pipeline) -> None:
    """Whoever fenced it may be the rightful owner, of whom it has yet to hear: it asks the log before it goes on."""
    pause = Pause()
    pipeline.model.play("mine ", pause, "still")
    running = await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    (reply_id,) = (await pipeline.replies()).keys()
    await pipeline.redis.call("SET", f"log:{INCOMING_TOPIC}:owner:ai-consumer", "another", "PX", 60_000)
    await pipeline.database.write(claim, [reply_id], "another", wall_clock())
    pause.open()
    await until(lambda: not running.role.assigned)
    assert await pipeline.replies() == {reply_id: (2, "generating")}
    assert len(pipeline.model.prompts) == 1
    assert await pipeline.position() == 1


async def test_stored_reply_is_appended_before_the_conversations_next_one_starts(pipeline: Pipeline) -> None:
    """An owner died between the completion and the append; the next one cannot append for a while."""
    await pipeline.relay()
    conversation = await pipeline.conversation()
    one, two = pipeline.message(conversation, "one"), pipeline.message(conversation, "two")
    await answered_by_one_who_died(pipeline, [one], "the first answer")
    running = await pipeline.consumer()
    running.appends.pulled = True
    await pipeline.append(one, two)
    await until(lambda: pipeline.stored(2))
    aside = await pipeline.conversation()
    await pipeline.say(aside, "aside")
    await until(lambda: reply_count(pipeline, "complete", 2))  # others go on meanwhile
    assert [prompt.messages[-1].content for prompt in pipeline.model.prompts] == ["aside"]
    running.appends.pulled = False
    answers = await pipeline.answers(3)
    mine = [answer["content"] for answer in answers if answer["conversation_id"] == conversation.id]
    assert mine == ["the first answer", "You said: two"]
    await until(lambda: at(pipeline, 4))


async def answered_by_one_who_died(pipeline: Pipeline, records: Sequence[MessageSubmitted], content: str) -> None:
    """Leave in the store what a worker leaves that dies right after its completion."""
    batch = [Incoming(record, INCOMING_TOPIC, 0, number) for number, record in enumerate(records, 1)]
    now = wall_clock()
    start = range(len(records))
    entries, claims = await pipeline.database.write(store_and_claim, batch, start, "dead", now)
    assert all(isinstance(entry, StoredRequest) for entry in entries)
    completions = [
        Completion(
            reply_id=held.reply_id,
            attempt=held.attempt,
            state="complete",
            completed_at=now,
            content=content,
            model="m",
            finish_reason="stop",
        )
        for held in claims
    ]
    await pipeline.database.write(complete, completions, [], now)


async def test_callback_of_a_revocation_ends_within_a_second_though_the_store_hangs(pipeline: Pipeline) -> None:
    pause, stuck = Pause(), asyncio.Event()
    pipeline.model.play("leaving ", pause, "words")
    first = await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "one")
    await pause.reached.wait()

    async def hang(*_: object) -> None:
        await stuck.wait()

    first.role._database.write = hang  # type: ignore[method-assign, assignment]
    began = asyncio.get_running_loop().time()
    await first.role._intake.on_revoked(list(first.role._intake._holdings))
    assert asyncio.get_running_loop().time() - began < 1.0
    assert not first.role.assigned
    assert await pipeline.position() == 1
    stuck.set()


async def shown(pipeline: Pipeline) -> bool:
    """Tell whether a device that comes now would see a part of a reply."""
    return any(b"mine" in live for live in (await pipeline.streams.attach(ALICE, None)).lives)


async def reply_count(pipeline: Pipeline, state: str, count: int) -> bool:
    return [each for _, each in (await pipeline.replies()).values()].count(state) == count


async def at(pipeline: Pipeline, offset: int) -> bool:
    return await pipeline.position() == offset
