"""From outcomes on the log to users' streams, whatever happens in between."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest
from tests.support.pipeline import ALICE, BOB, Pipeline, open_pipeline, until

from duologue.cluster.valkey import ValkeyServer
from duologue.delivery.stream import Applied, DurableFrame
from duologue.domain.ids import UserKey
from duologue.domain.records import RESPONSES_TOPIC, OutcomeRecord, ReplyCompleted, ReplyFailed, Usage, encode
from duologue.engines.redis import RedisCommandError
from duologue.store.dead_letters import list_dead_letters, read_dead_letter

GROUP = "message-relay"


def completed(number: int, user: UserKey = ALICE) -> ReplyCompleted:
    return ReplyCompleted(
        tenant=user.tenant,
        user_id=user.user_id,
        uid=f"uid-{user.user_id}",
        reply_id=f"reply-{number}",
        message_id=f"message-{number}",
        conversation_id="conversation",
        attempt=1,
        generation=1,
        completed_at=1_700_000_000_123,
        correlation_id=f"c-{number}",
        metadata={"n": number},
        content=f"answer {number}",
        model="scripted",
        finish_reason="stop",
        processing_time_ms=7,
        usage=Usage(1, 2, 3),
    )


def failed(number: int) -> ReplyFailed:
    whole = msgspec.structs.asdict(completed(number))
    shared = {name: whole[name] for name in ReplyFailed.__struct_fields__ if name in whole}
    return ReplyFailed(**shared, reason="the provider is unwell", cause="http_503", temporary=True)


async def put(pipeline: Pipeline, *records: OutcomeRecord) -> None:
    for record in records:
        await pipeline.log.producer.append(RESPONSES_TOPIC, record.user_id, encode(record), {})


async def at(pipeline: Pipeline, offset: int) -> bool:
    return await pipeline.position(RESPONSES_TOPIC, GROUP) == offset


async def test_completed_reply_becomes_a_response(pipeline: Pipeline) -> None:
    await pipeline.relay()
    await put(pipeline, completed(1))
    (frame,) = await pipeline.answers(1)
    assert frame.pop("event_id").endswith(":1")
    assert frame == {
        "type": "response",
        "role": "ai",
        "message_id": "message-1",
        "reply_id": "reply-1",
        "conversation_id": "conversation",
        "content": "answer 1",
        "userid": "alice",
        "timestamp": "2023-11-14T22:13:20.123Z",
        "processing_time_ms": 7,
        "model": "scripted",
        "finish_reason": "stop",
        "attempt": 1,
        "generation": 1,
        "correlation_id": "c-1",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "metadata": {"n": 1},
    }
    await until(lambda: at(pipeline, 2))


async def test_failed_reply_becomes_an_error(pipeline: Pipeline) -> None:
    await pipeline.relay()
    await put(pipeline, failed(1))
    (frame,) = await pipeline.answers(1)
    assert frame.pop("event_id")
    assert frame == {
        "type": "error",
        "code": "generation_failed",
        "message": "the provider is unwell",
        "userid": "alice",
        "temporary": True,
        "message_id": "message-1",
        "attempt": 1,
        "correlation_id": "c-1",
        "metadata": {"n": 1},
    }


async def test_relay_that_crashes_before_its_commit_doubles_nothing(pipeline: Pipeline) -> None:
    first = await pipeline.relay()
    first.commits.pulled = True
    await put(pipeline, *(completed(number) for number in range(20)))
    await pipeline.answers(20)
    await first.crash()
    assert await at(pipeline, 1)
    await pipeline.relay()
    await put(pipeline, completed(20))
    answers = await pipeline.answers(21)
    assert [answer["content"] for answer in answers] == [f"answer {number}" for number in range(21)]
    await until(lambda: at(pipeline, 22))


async def test_second_copy_of_an_outcome_changes_nothing(pipeline: Pipeline) -> None:
    await pipeline.relay()
    await put(pipeline, completed(1), completed(1), completed(2))
    answers = await pipeline.answers(2)
    assert [answer["content"] for answer in answers] == ["answer 1", "answer 2"]
    await until(lambda: at(pipeline, 4))


async def test_unreadable_outcome_is_set_aside_and_the_others_go_on(pipeline: Pipeline) -> None:
    await put(pipeline, completed(1))
    await pipeline.log.producer.append(RESPONSES_TOPIC, "alice", b"{}", {"h": "v"})
    await put(pipeline, completed(2))
    await pipeline.relay()
    await pipeline.answers(2)
    await until(lambda: at(pipeline, 4))
    (kept,) = (await pipeline.database.read(list_dead_letters, None, 10)).items
    letter = await pipeline.database.read(read_dead_letter, kept.id)
    assert (letter.topic, letter.offset, letter.value, letter.cause) == (RESPONSES_TOPIC, 2, b"{}", "unreadable")
    assert letter.headers == {"h": "v"}
    assert await pipeline.records(RESPONSES_TOPIC + ".dlq") == [b"{}"]


async def test_outcome_that_redis_refuses_is_set_aside_and_the_others_go_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(pipeline, monkeypatch, b"answer 2")
    await put(pipeline, *(completed(number) for number in (1, 2, 3)))
    await pipeline.relay()
    answers = await pipeline.answers(2)
    assert [answer["content"] for answer in answers] == ["answer 1", "answer 3"]
    await until(lambda: at(pipeline, 4))
    (letter,) = (await pipeline.database.read(list_dead_letters, None, 10)).items
    assert (letter.offset, letter.cause, letter.error) == (2, "refused_by_redis", "ERR for its data")
    refused = completed(2)
    assert (letter.uid, letter.message_id, letter.attempt) == (refused.uid, refused.message_id, refused.attempt)


def refuse(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let the script refuse a frame, which the real one has no reason to."""
    apply = pipeline.streams.apply

    async def refusing(user: UserKey, frames: Sequence[DurableFrame]) -> list[Applied]:
        if any(content in frame.frame for frame in frames):
            raise RedisCommandError("ERR for its data")
        return await apply(user, frames)

    monkeypatch.setattr(pipeline.streams, "apply", refusing)


async def test_user_with_many_uncommitted_outcomes_waits_for_the_commit(pipeline: Pipeline) -> None:
    relay = await pipeline.relay()
    relay.commits.pulled = True
    await put(pipeline, *(completed(number) for number in range(310)))
    await put(pipeline, completed(1, BOB))
    await pipeline.answers(1, BOB)
    assert len(await pipeline.answers(300)) == 300
    relay.commits.pulled = False
    answers = await pipeline.answers(310)
    assert [answer["content"] for answer in answers] == [f"answer {number}" for number in range(310)]
    await until(lambda: at(pipeline, 312))


async def test_drain_applies_what_was_taken_and_commits(pipeline: Pipeline) -> None:
    relay = await pipeline.relay()
    await put(pipeline, *(completed(number) for number in range(10)))
    await until(lambda: relay.role.pending or pipeline.answers(10))
    await relay.drain()
    taken = len(await pipeline.answers(1))
    assert await at(pipeline, taken + 1)


async def test_redis_away_holds_outcomes_back_in_their_order(
    valkey: str, valkey_server: ValkeyServer, migrated: Path, tmp_path: Path
) -> None:
    async with split_pipeline(valkey, valkey_server, migrated, tmp_path) as pipeline:
        await pipeline.relay()
        await put(pipeline, completed(0))
        await pipeline.answers(1)
        valkey_server.stop()
        await put(pipeline, *(completed(number) for number in range(1, 30)))
        valkey_server.start()
        await until(lambda: pipeline.streams.connected)
        answers = await pipeline.answers(30)
        assert [answer["content"] for answer in answers] == [f"answer {number}" for number in range(30)]
        await until(lambda: at(pipeline, 31))


def split_pipeline(
    valkey: str, server: ValkeyServer, migrated: Path, tmp_path: Path
) -> AbstractAsyncContextManager[Pipeline]:
    path = tmp_path / "duologue.db"
    shutil.copyfile(migrated, path)
    return open_pipeline(valkey, f"sqlite:///{path}", delivery_url=server.url)
