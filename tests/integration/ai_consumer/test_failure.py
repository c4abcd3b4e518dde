"""What goes wrong around a message: the model, the data, the engines."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest
from tests.support.pipeline import Pipeline, open_pipeline, reply_states, until

from duologue.cluster.valkey import ValkeyServer
from duologue.domain.clock import wall_clock
from duologue.domain.errors import LogUnavailable
from duologue.domain.ids import UserKey
from duologue.domain.records import INCOMING_TOPIC, StopRequested, encode
from duologue.llm.port import Finished, ModelRefused, ModelTemporaryError, PromptTooLong
from duologue.llm.scripted import Pause, ScriptedModel
from duologue.store.dead_letters import list_dead_letters, read_dead_letter

DEAD_TOPIC = INCOMING_TOPIC + ".dlq"


def unwell(cause: str = "http_503") -> ModelTemporaryError:
    return ModelTemporaryError("the provider is unwell", cause=cause, retry_after_seconds=0.0)


async def test_try_that_fails_before_its_first_delta_is_repeated_under_the_same_attempt(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play(unwell())
    pipeline.model.play("well again")
    await pipeline.consumer()
    async with pipeline.listening() as frames:
        await pipeline.say(await pipeline.conversation(), "hello")
        (answer,) = await pipeline.answers(1)
    assert (answer["content"], answer["attempt"]) == ("well again", 1)
    assert not [frame for frame in frames if frame["type"] == "reset"]


async def test_try_that_fails_after_a_delta_is_repeated_under_the_next_attempt(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("half an ", pause, unwell("broken_stream"))
    pipeline.model.play("a whole answer")
    await pipeline.consumer()
    async with pipeline.listening() as frames:
        await pipeline.say(await pipeline.conversation(), "hello")
        await until(lambda: any(frame["type"] == "delta" for frame in frames))
        pause.open()
        (answer,) = await pipeline.answers(1)
        await until(lambda: any(frame["type"] == "response" for frame in frames))
    assert (answer["content"], answer["attempt"]) == ("a whole answer", 2)
    (reset,) = [frame for frame in frames if frame["type"] == "reset"]
    assert (reset["attempt"], reset["reason"]) == (2, "retry")
    deltas = [(frame["attempt"], frame["seq"], frame["content"]) for frame in frames if frame["type"] == "delta"]
    assert deltas == [(1, 1, "half an "), (2, 1, "a whole answer")]
    ((attempt, state),) = (await pipeline.replies()).values()
    assert (attempt, state) == (2, "complete")


async def test_tries_that_are_exhausted_fail_visibly_and_the_next_message_goes_on(pipeline: Pipeline) -> None:
    await pipeline.relay()
    for _ in range(3):
        pipeline.model.play(unwell())
    await pipeline.consumer(model_max_tries=3)
    conversation = await pipeline.conversation()
    first = await pipeline.say(conversation, "one")
    await pipeline.say(conversation, "two")
    failure, answer = await pipeline.answers(2)
    assert failure["code"] == "generation_failed"
    assert (failure["message_id"], failure["temporary"], failure["attempt"]) == (first.message_id, True, 1)
    assert failure["message"] == "the provider is unwell"
    assert answer["content"] == "You said: two"
    assert [turn.content for turn in pipeline.model.prompts[-1].messages if turn.role == "user"] == ["one", "two"]
    (letter,) = (await pipeline.database.read(list_dead_letters, None, 10)).items
    assert (letter.message_id, letter.cause, letter.tries) == (first.message_id, "http_503", 3)
    assert (letter.conversation_id, letter.attempt, letter.user_id) == (conversation.id, 1, "alice")
    assert (await pipeline.database.read(read_dead_letter, letter.id)).value == encode(first)
    await until(lambda: at(pipeline, 3))
    assert await pipeline.records(DEAD_TOPIC) == [encode(first)]


async def test_failure_reaches_its_user_while_the_dead_letter_topic_is_away(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, away = pipeline.log.producer.append, True

    async def failing(topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        if away and topic == DEAD_TOPIC:
            raise LogUnavailable("away")
        await append(topic, key, value, headers)

    monkeypatch.setattr(pipeline.log.producer, "append", failing)
    await pipeline.relay()
    await pipeline.consumer()
    pipeline.model.play(ModelRefused("no such model", cause="http_404"))
    conversation = await pipeline.conversation()
    first = await pipeline.say(conversation, "one")
    await pipeline.say(conversation, "two")
    failure, answer = await pipeline.answers(2)
    assert (failure["code"], answer["content"]) == ("generation_failed", "You said: two")
    assert await pipeline.position() == 1  # its record is not done before its copy is there
    away = False
    await until(lambda: at(pipeline, 3))
    assert await pipeline.records(DEAD_TOPIC) == [encode(first)]


async def test_prompt_too_long_for_the_model_is_asked_again_with_less_history(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play("noted")
    pipeline.model.play(PromptTooLong("too long", cause="prompt_too_long"))
    pipeline.model.play("it fits")
    await pipeline.consumer()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "x" * 7000)
    await pipeline.answers(1)
    await pipeline.say(conversation, "and now?")
    assert "it fits" in {answer["content"] for answer in await pipeline.answers(2)}
    first, second = (len(prompt.messages) for prompt in pipeline.model.prompts[1:])
    assert first > second


async def test_message_too_long_by_itself_fails_and_the_next_one_is_answered(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play(PromptTooLong("too long", cause="prompt_too_long"))
    pipeline.model.play("fine")
    await pipeline.consumer()
    conversation = await pipeline.conversation()
    await pipeline.say(conversation, "x" * 7000)
    await pipeline.say(conversation, "shorter")
    failure, answer = await pipeline.answers(2)
    assert (failure["code"], failure["temporary"]) == ("generation_failed", False)
    assert answer["content"] == "fine"


async def test_request_that_the_model_refuses_is_not_repeated(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play(ModelRefused("the key was refused", cause="http_401"))
    await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    (failure,) = await pipeline.answers(1)
    assert (failure["temporary"], failure["message"]) == (False, "the key was refused")
    assert len(pipeline.model.prompts) == 1


async def test_answer_without_text_is_a_failed_try(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play(Finished("stop", "scripted"))
    pipeline.model.play("something")
    await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    (answer,) = await pipeline.answers(1)
    assert answer["content"] == "something"


async def test_answer_without_end_is_cut(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play(*["x" * 50_000] * 5)
    await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    (answer,) = await pipeline.answers(1)
    assert (len(answer["content"]), answer["finish_reason"]) == (150_000, "length")
    assert pipeline.model.abandoned == 1


async def test_model_that_crashes_is_a_visible_failure(pipeline: Pipeline) -> None:
    await pipeline.relay()

    def choose(_: object) -> None:
        raise RuntimeError("a bug")

    await pipeline.consumer(ScriptedModel(choose=choose))
    await pipeline.say(await pipeline.conversation(), "hello")
    (failure,) = await pipeline.answers(1)
    assert (failure["code"], failure["temporary"]) == ("generation_failed", True)
    assert "bug" not in failure["message"]


async def test_completion_that_cannot_be_stored_is_a_visible_failure(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play("fine", Finished("stop", "a \ud800 model"))
    await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    (failure,) = await pipeline.answers(1)
    assert failure["message"] == "the answer could not be stored"
    assert await reply_states(pipeline, ["failed"])


async def test_text_that_cannot_be_sent_is_a_visible_failure(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pipeline.model.play("lone \ud800 surrogate")
    await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    (failure,) = await pipeline.answers(1)
    assert failure["code"] == "generation_failed"


async def test_unreadable_records_between_good_ones_are_set_aside(pipeline: Pipeline) -> None:
    await pipeline.relay()
    conversation = await pipeline.conversation()
    good, newer, also_good = (pipeline.message(conversation, str(number)) for number in range(3))
    await pipeline.append(good)
    await pipeline.append_bytes(b"\xff\x00 no record")
    await pipeline.append_bytes(encode(msgspec.structs.replace(newer, v=99)))
    await pipeline.append(also_good)
    await pipeline.consumer()
    answers = await pipeline.answers(2)
    assert [answer["content"] for answer in answers] == ["You said: 0", "You said: 2"]
    await until(lambda: at(pipeline, 5))
    letters = (await pipeline.database.read(list_dead_letters, None, 10)).items
    assert {(letter.offset, letter.cause) for letter in letters} == {(2, "unreadable"), (3, "unreadable")}
    assert {letter.message_id for letter in letters} == {None, newer.message_id}
    assert (await pipeline.records(DEAD_TOPIC))[0] == b"\xff\x00 no record"


async def test_record_that_the_store_refuses_is_set_aside_alone(pipeline: Pipeline) -> None:
    await pipeline.relay()
    conversation = await pipeline.conversation()
    batch = [pipeline.message(conversation, str(number)) for number in range(5)]
    batch[2] = msgspec.structs.replace(batch[2], submitted_at=2**70)
    await pipeline.append(*batch)
    await pipeline.consumer()
    answers = await pipeline.answers(4)
    assert [answer["content"] for answer in answers] == [f"You said: {number}" for number in (0, 1, 3, 4)]
    await until(lambda: at(pipeline, 6))
    (letter,) = (await pipeline.database.read(list_dead_letters, None, 10)).items
    assert (letter.offset, letter.cause) == (3, "refused_by_store")
    assert (letter.user_id, letter.message_id, letter.attempt) == ("alice", batch[2].message_id, None)


async def test_store_away_stops_nothing_for_good(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("slow ", pause, "answer")
    running = await pipeline.consumer()
    one, other = await pipeline.conversation(), await pipeline.conversation()
    await pipeline.say(one, "one")
    await pause.reached.wait()
    running.store.pulled = True
    await pipeline.say(other, "two")
    pause.open()
    await until(lambda: pipeline.model.running == 0)
    assert await pipeline.position() == 1
    running.store.pulled = False
    answers = await pipeline.answers(2)
    assert {answer["content"] for answer in answers} == {"slow answer", "You said: two"}
    await until(lambda: at(pipeline, 3))
    assert len(pipeline.model.prompts) == 2


async def test_log_away_after_completion_appends_in_order_when_it_is_back(pipeline: Pipeline) -> None:
    await pipeline.relay()
    running = await pipeline.consumer()
    running.appends.pulled = True
    conversation = await pipeline.conversation()
    for content in ("one", "two", "three"):
        await pipeline.say(conversation, content)
    await until(lambda: reply_states(pipeline, ["complete"] * 3))
    assert await pipeline.position() == 1
    running.appends.pulled = False
    answers = await pipeline.answers(3)
    assert [answer["content"] for answer in answers] == ["You said: one", "You said: two", "You said: three"]
    await until(lambda: at(pipeline, 4))


async def test_offsets_done_out_of_order_are_committed_contiguously(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("first ", pause, "last")
    await pipeline.consumer()
    one, other = await pipeline.conversation(), await pipeline.conversation()
    await pipeline.say(one, "one")
    await pause.reached.wait()
    await pipeline.say(other, "two")
    (answer,) = await pipeline.answers(1)
    assert answer["content"] == "You said: two"
    assert await pipeline.position() == 1
    pause.open()
    await pipeline.answers(2)
    await until(lambda: at(pipeline, 3))


async def test_copies_of_a_message_are_done_without_a_second_answer(pipeline: Pipeline) -> None:
    await pipeline.relay()
    conversation = await pipeline.conversation()
    message = pipeline.message(conversation, "hello")
    await pipeline.append(message, message)
    await pipeline.consumer()
    await pipeline.answers(1)
    await pipeline.append(message)
    await until(lambda: at(pipeline, 4))
    assert len(pipeline.model.prompts) == 1
    assert [frame["type"] for frame in await pipeline.durable()] == ["echo", "response"]


async def test_message_for_an_unknown_conversation_is_done_without_outcome(pipeline: Pipeline) -> None:
    await pipeline.relay()
    conversation = await pipeline.conversation()
    stray = msgspec.structs.replace(pipeline.message(conversation, "stray"), conversation_id="nowhere")
    await pipeline.append(stray, pipeline.message(conversation, "known"))
    await pipeline.consumer()
    (answer,) = await pipeline.answers(1)
    assert answer["content"] == "You said: known"
    await until(lambda: at(pipeline, 3))


async def test_stop_without_a_running_reply_is_done_without_effect(pipeline: Pipeline) -> None:
    conversation = await pipeline.conversation()
    message = pipeline.message(conversation, "never said")
    stop = StopRequested(
        tenant=message.tenant,
        user_id=message.user_id,
        uid=message.uid,
        message_id=message.message_id,
        conversation_id=conversation.id,
        requested_at=wall_clock(),
        correlation_id="c",
    )
    await pipeline.append_bytes(encode(stop))
    await pipeline.consumer()
    await until(lambda: at(pipeline, 2))


async def test_full_memory_pauses_reading_and_goes_on_later(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pauses = [Pause() for _ in range(3)]
    for pause in pauses:
        pipeline.model.play(pause, "answer")
    running = await pipeline.consumer(max_pending_messages=2)
    for number in range(3):
        await pipeline.say(await pipeline.conversation(), str(number))
        if number < 2:
            await pauses[number].reached.wait()
    assert running.role.pending == 2
    assert not pauses[2].reached.is_set()
    for pause in pauses:
        pause.open()
    await pipeline.answers(3)


async def test_drain_finishes_what_was_taken_and_commits(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("almost ", pause, "done")
    running = await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    pause.open()
    await running.drain()
    assert await pipeline.position() == 2
    assert len(await pipeline.answers(1)) == 1


async def test_drain_past_its_deadline_leaves_the_rest_to_the_next_owner(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("never ", pause)
    running = await pipeline.consumer()
    await pipeline.say(await pipeline.conversation(), "hello")
    await pause.reached.wait()
    await running.drain(0.05)
    assert await pipeline.position() == 1
    await pipeline.consumer()
    (answer,) = await pipeline.answers(1)
    assert (answer["content"], answer["attempt"]) == ("You said: hello", 2)


@pytest.fixture
async def split(valkey: str, valkey_server: ValkeyServer, migrated: Path, tmp_path: Path) -> AsyncIterator[Pipeline]:
    """A pipeline whose delivery is on a Valkey of its own."""
    path = tmp_path / "duologue.db"
    shutil.copyfile(migrated, path)
    async with open_pipeline(valkey, f"sqlite:///{path}", delivery_url=valkey_server.url) as opened:
        yield opened


async def test_redis_away_in_a_reply_is_followed_by_a_snapshot(split: Pipeline, valkey_server: ValkeyServer) -> None:
    await split.relay()
    away, back = Pause(), Pause()
    split.model.play("before, ", away, "meanwhile, ", back, "after")
    await split.consumer()
    await split.say(await split.conversation(), "hello")
    await away.reached.wait()
    valkey_server.stop()
    await until(lambda: not split.streams.connected)
    away.open()
    await back.reached.wait()
    valkey_server.start()
    async with split.listening() as frames:
        await until(lambda: any(frame["type"] == "snapshot" for frame in frames))
        back.open()
        (answer,) = await split.answers(1)
        await until(lambda: any(frame["type"] == "response" for frame in frames))
    snapshot = next(frame for frame in frames if frame["type"] == "snapshot")
    assert (snapshot["content"], snapshot["attempt"], snapshot["seq"]) == ("before, meanwhile, ", 1, 2)
    assert [frame["seq"] for frame in frames if frame["type"] == "delta"] in ([3], [])
    assert (answer["content"], answer["attempt"]) == ("before, meanwhile, after", 1)


async def test_redis_away_for_a_whole_reply_loses_nothing(split: Pipeline, valkey_server: ValkeyServer) -> None:
    await split.relay()
    await split.consumer()
    conversation = await split.conversation()
    valkey_server.stop()
    await until(lambda: not split.streams.connected)
    await split.say(conversation, "hello")
    await until(lambda: reply_states(split, ["complete"]))
    valkey_server.start()
    await until(lambda: split.streams.connected)
    await split.answers(1)
    assert [frame["type"] for frame in await split.durable()] == ["echo", "response"]


async def test_users_with_few_messages_pass_one_with_many(pipeline: Pipeline) -> None:
    await pipeline.relay()
    crowd = [await pipeline.conversation(UserKey("default", "crowd")) for _ in range(20)]
    small = await pipeline.conversation(UserKey("default", "small"))
    for number, conversation in enumerate(crowd):
        await pipeline.say(conversation, f"crowd {number}", UserKey("default", "crowd"))
    await pipeline.say(small, "small", UserKey("default", "small"))
    await pipeline.consumer(max_workers=2, user_max_workers=2)
    await pipeline.answers(20, UserKey("default", "crowd"))
    asked = [prompt.messages[-1].content for prompt in pipeline.model.prompts]
    assert asked.index("small") <= 3


async def at(pipeline: Pipeline, offset: int) -> bool:
    return await pipeline.position() == offset
