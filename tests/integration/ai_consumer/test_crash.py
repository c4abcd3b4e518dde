"""Every place at which an ai-consumer may die: one answer, in order, and the model asked again only if need be."""

from __future__ import annotations

import random
from functools import partial

import pytest
from tests.support.pipeline import ALICE, BOB, Pipeline, reply_states, until

from duologue.ai_consumer.answering import MAX_TAKEOVERS
from duologue.domain.clock import wall_clock
from duologue.llm.port import ModelRequest, ModelTemporaryError
from duologue.llm.scripted import Pause, Script, ScriptedModel
from duologue.store.outcomes import mark_published
from duologue.store.replies import claim


async def test_crash_before_completion_is_answered_again_under_the_next_attempt(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    first = await pipeline.consumer(ScriptedModel([["half an ", pause, "answer"]]))
    conversation = await pipeline.conversation()
    async with pipeline.listening() as frames:
        message = await pipeline.say(conversation, "hello")
        await until(lambda: any(frame["type"] == "delta" for frame in frames))
        await first.crash()
        await pipeline.consumer()
        (answer,) = await pipeline.answers(1)
        await until(lambda: {frame.get("active") for frame in frames if frame["type"] == "typing"} == {True, False})
    assert (answer["message_id"], answer["attempt"]) == (message.message_id, 2)
    assert answer["content"] == "You said: hello"
    resets = [frame for frame in frames if frame["type"] == "reset"]
    assert [(frame["attempt"], frame["reason"]) for frame in resets] == [(2, "takeover")]
    assert len(pipeline.model.prompts) == 1
    assert [frame["type"] for frame in await pipeline.durable()] == ["echo", "response"]


async def test_crash_between_completion_and_publication_appends_the_stored_reply(pipeline: Pipeline) -> None:
    await pipeline.relay()
    first = await pipeline.consumer()
    first.appends.pulled = True
    conversation = await pipeline.conversation()
    await pipeline.append(pipeline.message(conversation, "one"), pipeline.message(conversation, "two"))
    await until(lambda: reply_states(pipeline, ["complete", "complete"]))
    await first.crash()
    untouched = ScriptedModel()
    await pipeline.consumer(untouched)
    answers = await pipeline.answers(2)
    assert [answer["content"] for answer in answers] == ["You said: one", "You said: two"]
    assert [answer["attempt"] for answer in answers] == [1, 1]
    assert untouched.prompts == []


async def test_crash_between_publication_and_commit_doubles_nothing(pipeline: Pipeline) -> None:
    await pipeline.relay()
    first = await pipeline.consumer()
    first.commits.pulled = True
    conversation = await pipeline.conversation()
    for content in ("one", "two"):
        await pipeline.say(conversation, content)
    await pipeline.answers(2)
    await first.crash()
    assert await pipeline.position() == 1
    untouched = ScriptedModel()
    await pipeline.consumer(untouched)
    await until(lambda: at(pipeline, 3))
    frames = await pipeline.durable()
    assert [frame["type"] for frame in frames].count("echo") == 2
    assert [frame["type"] for frame in frames].count("response") == 2
    assert untouched.prompts == []


async def test_published_message_that_comes_again_has_no_echo(pipeline: Pipeline) -> None:
    await pipeline.relay()
    await pipeline.consumer()
    conversation = await pipeline.conversation()
    message = await pipeline.say(conversation, "hello")
    (answer,) = await pipeline.answers(1)
    await pipeline.database.write(mark_published, [answer["reply_id"]])
    await until(lambda: at(pipeline, 2))
    await pipeline.streams.forget(ALICE)  # Redis has forgotten what it applied
    await pipeline.append(message)
    await until(lambda: at(pipeline, 3))
    assert await pipeline.durable() == []


async def test_messages_of_a_conversation_after_a_crash_are_answered_in_order(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    first = await pipeline.consumer(ScriptedModel([["x", pause]]))
    conversation = await pipeline.conversation()
    contents = [str(number) for number in range(5)]
    for content in contents:
        await pipeline.say(conversation, content)
    await pause.reached.wait()
    await first.crash()
    await pipeline.consumer()
    answers = await pipeline.answers(5)
    assert [answer["content"] for answer in answers] == [f"You said: {content}" for content in contents]
    last = pipeline.model.prompts[-1].messages
    assert [turn.content for turn in last if turn.role == "user"] == contents
    assert len([turn for turn in last if turn.role == "assistant"]) == 4


async def test_worker_that_was_overtaken_is_dropped_and_starts_again_while_it_owns_the_log(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("late ", pause, "words")
    await pipeline.consumer()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "hello")
    await pause.reached.wait()
    (reply_id,) = (await pipeline.replies()).keys()
    (other,) = await pipeline.database.write(claim, [reply_id], "another", wall_clock())
    assert other.attempt == 2
    pause.open()
    (answer,) = await pipeline.answers(1)
    assert (answer["attempt"], answer["content"]) == (3, "You said: hello")
    assert len(await pipeline.answers(1)) == 1


async def test_worker_that_lost_the_log_stops_its_replies_and_commits_nothing(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("lost ", pause, "words")
    running = await pipeline.consumer()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "hello")
    await pause.reached.wait()
    await running.role._intake.on_lost(list(running.role._intake._holdings))
    await until(lambda: pipeline.model.running == 0)
    assert running.role._dispatcher.running == 0
    assert not list(running.role._requests)
    assert await pipeline.position() == 1
    (state,) = (await pipeline.replies()).values()
    assert state == (1, "generating")


async def test_partition_that_is_given_up_lets_its_replies_finish_uncommitted(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("leaving ", pause, "words")
    first = await pipeline.consumer()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "one")
    await pipeline.say(conversation, "two")
    await pause.reached.wait()
    await until(lambda: pipeline.stored(2))
    await first.role._intake.on_revoked(list(first.role._intake._holdings))
    untouched = ScriptedModel()
    await pipeline.consumer(untouched)
    await until(lambda: pipeline.stored(2))
    pause.open()
    answers = await pipeline.answers(2)
    assert [(answer["content"], answer["attempt"]) for answer in answers] == [
        ("leaving words", 1),
        ("You said: two", 1),
    ]
    assert len(untouched.prompts) == 1
    await until(lambda: at(pipeline, 3))


async def test_reply_taken_over_too_often_fails_visibly(pipeline: Pipeline) -> None:
    await pipeline.relay()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "the message that kills")
    for _ in range(6):
        pause = Pause()
        victim = await pipeline.consumer(ScriptedModel([[pause]]))
        await pause.reached.wait()
        await victim.crash()
    await pipeline.consumer()
    (answer,) = await pipeline.answers(1)
    assert (answer["type"], answer["code"], answer["temporary"]) == ("error", "generation_failed", True)
    assert pipeline.model.prompts == []


@pytest.mark.parametrize("seed", range(4))
async def test_crashes_at_any_moment_lose_and_double_nothing(pipeline: Pipeline, seed: int) -> None:
    """Consumers that crash or are drained, relays that crash, and a model that fails now and then, after deltas too."""
    dice = random.Random(seed)
    model = ScriptedModel(choose=lambda request: moody(request, dice))
    conversations = {user: [await pipeline.conversation(user) for _ in range(3)] for user in (ALICE, BOB)}
    consumer, relay = await pipeline.consumer(model), await pipeline.relay()
    sent: dict[str, list[str]] = {}
    ends = 0
    for number in range(60):
        user = dice.choice((ALICE, BOB))
        conversation = dice.choice(conversations[user])
        await pipeline.say(conversation, str(number), user)
        sent.setdefault(conversation.id, []).append(f"You said: {number}")
        chance = dice.random()
        if chance < 0.12:
            await (consumer.crash() if chance < 0.08 else consumer.drain(0.02))
            consumer = await pipeline.consumer(model)
            ends += 1
            if ends % MAX_TAKEOVERS == 0:  # however slow this machine is, none is taken over so often that it fails
                await until(partial(at, pipeline, number + 2))
        elif chance < 0.18:
            await relay.crash()
            relay = await pipeline.relay()
    await until(lambda: at(pipeline, 61))
    await until(lambda: has_relayed_all(pipeline))
    frames = [*await pipeline.durable(), *await pipeline.durable(BOB)]
    assert [frame for frame in frames if frame["type"] == "error"] == []
    kinds = [(frame["type"], frame["message_id"]) for frame in frames]
    assert len(kinds) == len(set(kinds)) == 120
    assert all(
        kinds.index(("echo", message)) < kinds.index((kind, message)) for kind, message in kinds if kind != "echo"
    )
    answers = [frame for frame in frames if frame["type"] == "response"]
    for conversation_id, contents in sent.items():
        got = [answer["content"] for answer in answers if answer["conversation_id"] == conversation_id]
        assert got == contents
    assert {state for _, state in (await pipeline.replies()).values()} == {"complete"}


def moody(request: ModelRequest, dice: random.Random) -> Script | None:
    """Fail one try in five, half of them in the middle of the answer."""
    chance = dice.random()
    if chance > 0.2:
        return None
    failure = ModelTemporaryError("the provider is unwell", cause="http_503", retry_after_seconds=0.0)
    return [failure] if chance < 0.1 else ["You said", failure]


async def has_relayed_all(pipeline: Pipeline) -> bool:
    """Tell whether the relay has committed everything that is on its topic."""
    last = await pipeline.redis.call("XREVRANGE", "log:responses", "+", "-", "COUNT", 1)
    end = int(last[0][0].split(b"-")[1]) + 1 if last else 1
    return await pipeline.position("responses", "message-relay") >= end


async def at(pipeline: Pipeline, offset: int) -> bool:
    return await pipeline.position() == offset
