"""What the thread of a Kafka consumer makes of the answers to commits, which come in calls of librdkafka's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition

from duologue.domain.errors import LogUnavailable, OwnershipLost
from duologue.log.kafka_reader import Commit, Reader, Revocation
from duologue.log.kafka_thread import Mailbox
from duologue.log.port import LogRecord, Partition

P, Q = Partition("topic", 0), Partition("topic", 1)


class Client:
    """A librdkafka that takes commits and answers none."""

    def __init__(self) -> None:
        self.commits: list[list[TopicPartition]] = []

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert asynchronous, "a commit that waits has no time-out"
        self.commits.append(offsets)


class Sink:
    """Remembers how commits ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[Commit, Exception | None]] = []
        self.told: list[Commit] = []

    def take_in(self, records: list[LogRecord], size: int) -> None: ...
    def assigned(self, partitions: Sequence[Partition], begins: Mapping[Partition, int]) -> None: ...
    def revoked(self, revocation: Revocation) -> None: ...
    def lost(self, partitions: Sequence[Partition]) -> None: ...
    def away(self, reason: str | None) -> None: ...

    def sent(self, commit: Commit) -> None:
        self.told.append(commit)

    def committed(self, commit: Commit, error: Exception | None) -> None:
        self.ended.append((commit, error))


class Scene:
    """A reader that owns two partitions, its thread being the test's."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.mailbox, self.sink, self.client = Mailbox(loop), Sink(), Client()
        self.reader = Reader({}, topic="topic", prefix="", mailbox=self.mailbox, sink=self.sink)
        self.reader._client = self.client  # type: ignore[assignment]
        self.reader._owned = {P: 1, Q: 1}
        self._waiter = loop.create_future

    def ask(self, offsets: Mapping[Partition, int]) -> Commit:
        commit = Commit(offsets, self._waiter())
        self.reader.ask(commit)
        return commit

    def answer(self, offsets: Mapping[Partition, int], code: int | None = None) -> None:
        partitions = [TopicPartition(each.topic, each.number, offset) for each, offset in offsets.items()]
        self.reader._on_commit(None if code is None else KafkaError(code), partitions)

    def ended(self) -> list[tuple[Commit, Any]]:
        self.mailbox.deliver()
        return [(commit, error if error is None else type(error)) for commit, error in self.sink.ended]


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
    ],
)
async def test_commit_refused_for_a_while_may_be_repeated(code: int) -> None:
    scene = Scene()
    commit = scene.ask({P: 5})
    scene.reader._start_commit()
    scene.answer({P: 5}, code)
    assert scene.ended() == [(commit, LogUnavailable)]
    assert scene.reader._fatal is None


@pytest.mark.parametrize("code", [KafkaError.UNKNOWN_MEMBER_ID, KafkaError.FENCED_INSTANCE_ID])
async def test_commit_of_a_member_that_was_put_out_ends_the_consumer(code: int) -> None:
    scene = Scene()
    commit = scene.ask({P: 5})
    scene.reader._start_commit()
    scene.answer({P: 5}, code)
    assert scene.ended() == [(commit, OwnershipLost)]
    assert scene.reader._fatal is not None


async def test_commits_go_one_at_a_time_and_answers_find_theirs() -> None:
    scene = Scene()
    first, second = scene.ask({P: 5}), scene.ask({Q: 7})
    scene.reader._start_commit()
    scene.reader._start_commit()
    assert len(scene.client.commits) == 1
    scene.answer({P: 5})
    scene.reader._start_commit()
    scene.answer({Q: 7})
    assert scene.ended() == [(first, None), (second, None)]


async def test_commit_within_a_rebalance_goes_ahead_only_for_what_is_given_up() -> None:
    scene = Scene()
    under_way = scene.ask({P: 4, Q: 4})
    scene.reader._start_commit()
    mixed, going = scene.ask({P: 5, Q: 5}), scene.ask({P: 6})
    revocation = Revocation([P])
    scene.reader.ask(revocation)
    scene.reader._let_go(revocation)
    assert [[(each.partition, each.offset) for each in offsets] for offsets in scene.client.commits] == [
        [(0, 4), (1, 4)],
        [(0, 6)],
    ]
    assert scene.ended() == []
    assert scene.sink.told == [going]
    scene.reader._owned.pop(P)
    scene.answer({P: 6})
    scene.answer({P: 4, Q: 4})
    scene.reader._start_commit()
    assert scene.ended() == [(going, None), (under_way, None), (mixed, OwnershipLost)]


async def test_commit_of_a_partition_given_up_is_refused_and_holds_up_no_other() -> None:
    scene = Scene()
    scene.reader._owned.pop(P)
    refused, taken = scene.ask({P: 5}), scene.ask({Q: 5})
    scene.reader._start_commit()
    scene.answer({Q: 5})
    assert scene.ended() == [(refused, OwnershipLost), (taken, None)]
