"""The topics on Kafka: made if they are missing, and refused if they are not as this program needs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import ClusterMetadata, TopicMetadata
from confluent_kafka.cimpl import NewTopic

from duologue.domain.errors import LogUnavailable, StartRefused
from duologue.domain.records import DEAD_LETTER_SUFFIX, INCOMING_TOPIC, RESPONSES_TOPIC
from duologue.log.kafka_options import MAX_RECORD_BYTES, KafkaOptions

_log = structlog.get_logger(__name__)

TOPICS: Final = tuple(
    topic + suffix for topic in (INCOMING_TOPIC, RESPONSES_TOPIC) for suffix in ("", DEAD_LETTER_SUFFIX)
)
_RETENTION_MS: Final = 7 * 24 * 3600 * 1000
_CHECK_SECONDS: Final = 1.5

_REFUSED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_EXCEPTION,
    }
)


class _Client(Protocol):
    def list_topics(self, topic: str, timeout: float) -> ClusterMetadata: ...


class KafkaTopics:
    """Prepares and looks at the topics. Its calls to librdkafka block, so they are made in threads."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._prepared = False
        self._lock = asyncio.Lock()

    async def prepare(self, client: _Client) -> None:
        """Make the topics that are missing and check all, once; later calls only see whether Kafka answers.

        Raises:
            LogUnavailable: it does not, or cannot make a topic now.
            StartRefused: a topic is not as this program needs it, or may not be made by it.
        """
        async with self._lock:
            if self._prepared:
                await self.check(client)
                return
            await asyncio.to_thread(self._prepare, client)
            self._prepared = True

    async def check(self, client: _Client) -> None:
        """Return if Kafka answers and each partition of the first topic can be written. Raises LogUnavailable."""
        topic = await asyncio.to_thread(self._describe, client, TOPICS[0])
        if topic is None:
            raise LogUnavailable(f"Kafka has no topic {self._name(TOPICS[0])}")
        without = sorted(number for number, partition in topic.partitions.items() if partition.leader < 0)
        if without:
            raise LogUnavailable(f"partitions of {topic.topic} have no leader: {without}")

    def _prepare(self, client: _Client) -> None:
        found = {topic: self._describe(client, topic) for topic in TOPICS}
        if missing := [topic for topic, description in found.items() if description is None]:
            self._create(missing)
            found.update({topic: self._describe_new(client, topic) for topic in missing})
        for description in found.values():
            if description is not None:
                self._require(description)

    def _describe_new(self, client: _Client, topic: str) -> TopicMetadata:
        """Describe a topic that was just made, perhaps by another process: brokers hear of it a moment later."""
        deadline = time.monotonic() + self._options.timeout_seconds
        while time.monotonic() < deadline:
            if (description := self._describe(client, topic)) is not None:
                return description
            time.sleep(0.02)
        raise LogUnavailable(f"Kafka does not know {self._name(topic)} yet, which was just made")

    def _describe(self, client: _Client, topic: str) -> TopicMetadata | None:
        name = self._name(topic)
        try:
            metadata: TopicMetadata = client.list_topics(name, timeout=_CHECK_SECONDS).topics[name]
        except KafkaException as error:
            raise LogUnavailable(f"Kafka does not answer: {error.args[0].str()}") from error
        if metadata.error is None:
            return metadata
        if metadata.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise LogUnavailable(f"Kafka does not tell about {name}: {metadata.error.str()}")

    def _require(self, topic: TopicMetadata) -> None:
        """Refuse a topic that others have made otherwise: with the number of partitions every key changes its own."""
        options = self._options
        if len(topic.partitions) != options.partitions:
            raise StartRefused(
                f"topic {topic.topic} has {len(topic.partitions)} partitions, and KAFKA_PARTITIONS is "
                f"{options.partitions}: set it to what the topic has, which must never change, or delete the topic"
            )
        replicas = min(len(partition.replicas) for partition in topic.partitions.values())
        if replicas < options.replication_factor:
            raise StartRefused(
                f"topic {topic.topic} has {replicas} replicas, KAFKA_REPLICATION_FACTOR is "
                f"{options.replication_factor}: reassign its partitions, or lower the setting"
            )

    def _create(self, topics: Sequence[str]) -> None:
        """Make topics, side by side with other processes that do the same."""
        admin = AdminClient(self._options.client())
        new = [self._new(topic) for topic in topics]
        for name, made in admin.create_topics(new, request_timeout=self._options.timeout_seconds).items():
            try:
                made.result()
                _log.info("kafka_topic_made", topic=name, partitions=self._options.partitions)
            except KafkaException as error:
                _raise_unless_there(name, error.args[0])

    def _new(self, topic: str) -> NewTopic:
        options = self._options
        config: Mapping[str, Any] = {
            "retention.ms": _RETENTION_MS,
            "min.insync.replicas": options.min_insync_replicas,
            "max.message.bytes": MAX_RECORD_BYTES,
            "cleanup.policy": "delete",
            "unclean.leader.election.enable": "false",
        }
        return NewTopic(
            self._name(topic),
            num_partitions=options.partitions,
            replication_factor=options.replication_factor,
            config={name: str(value) for name, value in config.items()},
        )

    def _name(self, topic: str) -> str:
        return self._options.topic_prefix + topic


def _raise_unless_there(name: str, error: KafkaError) -> None:
    if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
        return
    text = f"topic {name} could not be made: {error.str()}"
    if error.code() in _REFUSED:
        raise StartRefused(text)
    raise LogUnavailable(text)
