"""Where a consumer on Kafka stands in its partitions: whether a record is the one that has to come next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

import structlog
from confluent_kafka import KafkaException, TopicPartition

from duologue.log.port import Partition
from duologue.observability import metrics

_log = structlog.get_logger(__name__)

_ASK_SECONDS: Final = 1.0


class Client(Protocol):
    """What is used of librdkafka's consumer."""

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...


class Positions:
    """The positions of one consumer."""

    def __init__(self, topic: str, name: str) -> None:
        self._topic = topic
        self._name = name
        self._begins: dict[Partition, int] = {}
        self._nexts: dict[Partition, int] = {}

    def gain(self, client: Client, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        """Note and return where the reading of partitions begins: at their commits, where there are any.

        It blocks for 1 s at most.

        Raises:
            KafkaException: nobody tells; then a gap before the first record goes unnoticed.
        """
        if partitions:
            for each in client.committed(self._named(partitions), timeout=_ASK_SECONDS):
                if each.error is not None:
                    raise KafkaException(each.error)
                self._begins[Partition(self._topic, each.partition)] = each.offset  # negative if there is none
        return {partition: self._begins[partition] for partition in partitions if self._begins[partition] >= 0}

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget partitions."""
        for partition in partitions:
            self._begins.pop(partition, None)
            self._nexts.pop(partition, None)

    def take(self, partition: Partition, offset: int) -> bool:
        """Move on over a record; tell whether it is one of the log that was read so far.

        Where no record is missing, offsets have no gaps, so a gap is what the log has removed unread. An offset that
        was passed already is another record, of a topic that was made again or has lost its end. Below the commit,
        where nothing was read of it yet, that is taken; later the consumer has to begin anew.
        """
        following = self._nexts.get(partition)
        expected = self._begins.get(partition, -1) if following is None else following
        if 0 <= expected < offset:
            metrics.RECORDS_MISSED.labels(topic=self._topic).inc(offset - expected)
            _log.error("log_records_missed", topic=self._topic, partition=partition.number, first=expected, end=offset)
        elif offset < expected:
            _log.error("log_went_back", topic=self._topic, partition=partition.number, expected=expected, found=offset)
            if following is not None:
                return False
        self._nexts[partition] = offset + 1
        return True

    def _named(self, partitions: Sequence[Partition]) -> list[TopicPartition]:
        return [TopicPartition(self._name, partition.number) for partition in partitions]
