"""What holds for every message between the log and its answer: once, in turn, side by side, after its echo."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.support.pipeline import ALICE, BOB, Pipeline, open_pipeline, reply_states, until

from duologue.cluster.valkey import ValkeyServer
from duologue.domain.errors import LogUnavailable
from duologue.llm.scripted import Pause
from duologue.log.port import LogProducer
from duologue.store.dead_letters import list_dead_letters
from duologue.store.schema import messages


async def test_copy_in_another_conversation_is_done_without_outcome(pipeline: Pipeline) -> None:
    await pipeline.relay()
    await pipeline.consumer()
    here, there = await pipeline.conversation(), await pipeline.conversation()
    message = pipeline.message(here, "hello")
    copy = msgspec.structs.replace(message, conversation_id=there.id)
    await pipeline.append(message, copy)
    await pipeline.answers(1)
    await pipeline.append(copy, pipeline.message(there, "another"))
    answers = await pipeline.answers(2)
    assert [answer["conversation_id"] for answer in answers] == [here.id, there.id]
    assert [answer["content"] for answer in answers] == ["You said: hello", "You said: another"]
    await until(lambda: at(pipeline, 5))
    assert [frame["type"] for frame in await pipeline.durable()].count("echo") == 2
    assert len(pipeline.model.prompts) == 2


async def test_outcome_that_is_on_the_log_is_marked_and_not_appended_for_a_late_copy(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await until(lambda: pipeline.stored(1))
    await until(lambda: published(pipeline))
    assert len(await pipeline.records("responses")) == 1
    await pipeline.append(message)
    await until(lambda: at(pipeline, 3))
    assert len(await pipeline.records("responses")) == 1


async def published(pipeline: Pipeline) -> bool:
    """Tell whether the store knows of every reply that its outcome is on the log."""
    return all(await pipeline.database.read(_published))


def _published(conn: Connection) -> list[bool]:
    return list(conn.scalars(sa.select(messages.c.published).where(messages.c.role == "assistant")))


async def test_outcome_is_not_on_the_log_before_its_echo_is_applied(
    valkey: str, valkey_server: ValkeyServer, migrated: Path, tmp_path: Path
) -> None:
    path = tmp_path / "duologue.db"
    shutil.copyfile(migrated, path)
    async with open_pipeline(valkey, f"sqlite:///{path}", delivery_url=valkey_server.url) as pipeline:
        await pipeline.consumer()
        valkey_server.stop()
        await until(lambda: not pipeline.streams.connected)
        await pipeline.say(await pipeline.conversation(), "hello")
        await until(lambda: reply_states(pipeline, ["complete"]))
        for _ in range(50):  # time enough for an append
            await pipeline.log.check()
        assert await pipeline.records("responses") == []
        assert await pipeline.position() == 1
        valkey_server.start()
        await until(lambda: pipeline.records("responses"))
        assert [frame["type"] for frame in await pipeline.durable()] == ["echo"]


async def test_redis_out_of_memory_holds_echo_and_outcome_back_and_loses_none(
    valkey: str, valkey_server: ValkeyServer, migrated: Path, tmp_path: Path
) -> None:
    """An error of that kind is not about the data: nothing is set aside for it (rule Poison)."""
    path = tmp_path / "duologue.db"
    shutil.copyfile(migrated, path)
    async with open_pipeline(valkey, f"sqlite:///{path}", delivery_url=valkey_server.url) as pipeline:
        await pipeline.relay()
        await pipeline.consumer()
        conversation = await pipeline.conversation()
        await pipeline.say(conversation, "before")
        await pipeline.answers(1)
        valkey_server.execute("CONFIG", "SET", "maxmemory", "1")
        for number in range(3):
            await pipeline.say(conversation, str(number))
        await until(lambda: reply_states(pipeline, ["complete"] * 4))
        valkey_server.execute("CONFIG", "SET", "maxmemory", "0")
        answers = await pipeline.answers(4)
        assert [answer["content"] for answer in answers[1:]] == [f"You said: {number}" for number in range(3)]
        await until(lambda: at(pipeline, 5))
        assert (await pipeline.database.read(list_dead_letters, None, 10)).items == []
        kinds = [(frame["type"], frame["message_id"]) for frame in await pipeline.durable()]
        assert len(kinds) == len(set(kinds)) == 8


class _StumblingProducer:
    """A log that refuses the first appends of a certain text, as one that is away for a moment does."""

    def __init__(self, log: LogProducer, text: bytes, times: int) -> None:
        self._log = log
        self._text = text
        self.left = times

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        if self._text in value and self.left:
            self.left -= 1
            raise LogUnavailable("away for a moment")
        await self._log.append(topic, key, value, headers)


async def test_outcome_whose_append_is_repeated_is_not_overtaken_by_the_conversations_next(pipeline: Pipeline) -> None:
    await pipeline.relay()
    running = await pipeline.consumer()
    producer = _StumblingProducer(pipeline.log.producer, b"You said: one", times=2)
    running.role._publisher._producer = producer
    conversation = await pipeline.conversation()
    for content in ("one", "two", "three"):
        await pipeline.say(conversation, content)
    answers = await pipeline.answers(3)
    assert producer.left == 0
    assert [answer["content"] for answer in answers] == [f"You said: {text}" for text in ("one", "two", "three")]


async def test_replies_at_once_are_bounded_in_all_and_for_each_user(pipeline: Pipeline) -> None:
    pauses = [Pause() for _ in range(9)]
    for pause in pauses:
        pipeline.model.play(pause, "answer")
    await pipeline.relay()
    running = await pipeline.consumer(max_workers=5, user_max_workers=3)
    for user in (ALICE, BOB):
        for number in range(4):
            await pipeline.say(await pipeline.conversation(user), str(number), user)
    await until(lambda: running.role.pending == 8 and pipeline.model.running == 5)
    said = [prompt.user for prompt in pipeline.model.prompts]
    assert sorted(said.count(user) for user in set(said)) == [2, 3]
    pauses[0].open()
    await until(lambda: len(pipeline.model.prompts) == 6)
    assert pipeline.model.running == 5
    for pause in pauses:
        pause.open()
    assert len(await pipeline.answers(4)) == len(await pipeline.answers(4, BOB)) == 4


async def test_conversations_of_one_user_are_answered_side_by_side_and_each_in_turn(pipeline: Pipeline) -> None:
    await pipeline.relay()
    pause = Pause()
    pipeline.model.play("slow ", pause)
    await pipeline.consumer()
    slow, quick = await pipeline.conversation(), await pipeline.conversation()
    await pipeline.say(slow, "first")
    await pause.reached.wait()
    await pipeline.say(slow, "second")
    await pipeline.say(quick, "aside")
    (answer,) = await pipeline.answers(1)
    assert answer["conversation_id"] == quick.id
    assert len(pipeline.model.prompts) == 2
    pause.open()
    answers = await pipeline.answers(3)
    assert [each["content"] for each in answers if each["conversation_id"] == slow.id] == ["slow ", "You said: second"]


async def test_model_and_metadata_of_a_message_reach_the_model_and_come_back(pipeline: Pipeline) -> None:
    await pipeline.relay()
    await pipeline.consumer()
    plain = pipeline.message(await pipeline.conversation(), "hello")
    await pipeline.append(msgspec.structs.replace(plain, model="other-model", metadata={"page": [1, {"a": None}]}))
    (answer,) = await pipeline.answers(1)
    assert pipeline.model.prompts[0].model == "other-model"
    echo, response = await pipeline.durable()
    assert echo["metadata"] == response["metadata"] == answer["metadata"] == {"page": [1, {"a": None}]}


async def at(pipeline: Pipeline, offset: int) -> bool:
    return await pipeline.position() == offset
