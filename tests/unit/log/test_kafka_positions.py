"""Whether a record is the one that has to come next."""

from __future__ import annotations

import pytest
import structlog
from confluent_kafka import TopicPartition

from duologue.log.kafka_positions import Positions
from duologue.log.port import Partition

P = Partition("topic", 0)


class Client:
    """A Kafka with one commit."""

    def __init__(self, committed: int) -> None:
        self._committed = committed

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(each.topic, each.partition, self._committed) for each in partitions]


def _positions(committed: int) -> Positions:
    positions = Positions("topic", "prefix-topic")
    positions.gain(Client(committed), [P])
    return positions


@pytest.mark.parametrize(("committed", "first"), [(5, 5), (-1001, 0), (-1001, 7)])
def test_take_first_record_at_the_commit_or_without_one_is_quiet(committed: int, first: int) -> None:
    positions = _positions(committed)
    with structlog.testing.capture_logs() as logs:
        assert all(positions.take(P, offset) for offset in (first, first + 1))
    assert logs == []


@pytest.mark.parametrize(("offsets", "gap"), [([9], (5, 9)), ([5, 8], (6, 8))])
def test_take_record_behind_a_gap_is_taken_and_told(offsets: list[int], gap: tuple[int, int]) -> None:
    positions = _positions(5)
    with structlog.testing.capture_logs() as logs:
        assert all(positions.take(P, offset) for offset in offsets)
    [entry] = logs
    assert (entry["event"], entry["log_level"], entry["first"], entry["end"]) == ("log_records_missed", "error", *gap)


def test_take_record_passed_already_is_refused_and_told() -> None:
    positions = _positions(5)
    assert positions.take(P, 5)
    with structlog.testing.capture_logs() as logs:
        assert not positions.take(P, 0)
    assert [entry["event"] for entry in logs] == ["log_went_back"]


def test_take_first_record_below_the_commit_is_taken_and_told() -> None:
    positions = _positions(5)
    with structlog.testing.capture_logs() as logs:
        assert positions.take(P, 0)
        assert positions.take(P, 1)
    assert [entry["event"] for entry in logs] == ["log_went_back"]


def test_take_after_drop_knows_nothing_of_before() -> None:
    positions = _positions(5)
    assert positions.take(P, 5)
    positions.drop([P])
    assert positions.take(P, 3)


@pytest.mark.parametrize(("committed", "begins"), [(5, {P: 5}), (-1001, {})])
def test_gain_tells_the_commit_if_there_is_one(committed: int, begins: dict[Partition, int]) -> None:
    assert Positions("topic", "prefix-topic").gain(Client(committed), [P]) == begins
