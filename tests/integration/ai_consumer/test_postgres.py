"""Conversations on PostgreSQL, which ends and comes back while people write."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support.pipeline import Pipeline, open_pipeline, reply_states, until

from duologue.cluster.postgres import PostgresServer
from duologue.llm.scripted import Pause


@pytest.fixture
async def on_postgres(valkey: str, postgres_server: PostgresServer) -> AsyncIterator[Pipeline]:
    """A pipeline whose store is a PostgreSQL of the test's own."""
    async with open_pipeline(valkey, postgres_server.url("duologue")) as opened:
        yield opened


async def test_messages_of_several_conversations_are_answered_in_order(on_postgres: Pipeline) -> None:
    await on_postgres.relay()
    await on_postgres.consumer()
    conversations = [await on_postgres.conversation() for _ in range(4)]
    for number in range(5):
        for place, conversation in enumerate(conversations):
            await on_postgres.say(conversation, f"{place} {number}")
    answers = await on_postgres.answers(20)
    for place, conversation in enumerate(conversations):
        said = [answer["content"] for answer in answers if answer["conversation_id"] == conversation.id]
        assert said == [f"You said: {place} {number}" for number in range(5)]


@pytest.mark.parametrize("way", ["killed", "stopped"])
async def test_database_that_goes_away_in_a_reply_costs_waiting_but_no_message(
    on_postgres: Pipeline, postgres_server: PostgresServer, way: str
) -> None:
    await on_postgres.relay()
    pause = Pause()
    on_postgres.model.play("slow ", pause, "answer")
    await on_postgres.consumer()
    one, other = await on_postgres.conversation(), await on_postgres.conversation()
    await on_postgres.say(one, "one")
    await pause.reached.wait()
    if way == "killed":
        postgres_server.kill()
    else:
        postgres_server.stop()
    await on_postgres.say(other, "two")
    await on_postgres.say(one, "three")
    pause.open()
    await until(lambda: on_postgres.model.running == 0)
    assert await on_postgres.position() == 1
    postgres_server.start()
    answers = await on_postgres.answers(3)
    assert sorted(answer["content"] for answer in answers) == ["You said: three", "You said: two", "slow answer"]
    assert await reply_states(on_postgres, ["complete"] * 3)
    assert len(on_postgres.model.prompts) == 3  # the model was asked once for each
