"""The log on Kafka, for many machines: partitions shared between the consumers of a group (rule Owner)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from confluent_kafka import KafkaException

from duologue.domain.errors import LogUnavailable, StartRefused
from duologue.log.kafka_consumer import KafkaConsumer
from duologue.log.kafka_options import KafkaOptions
from duologue.log.kafka_producer import KafkaProducer
from duologue.log.kafka_topics import KafkaTopics
from duologue.log.partitioner import partition_of
from duologue.log.port import PartitionListener


@asynccontextmanager
async def open_kafka_log(options: KafkaOptions) -> AsyncIterator[KafkaLog]:
    """Open the log. A Kafka that is away is no error here: its topics are made when it is back.

    Raises:
        StartRefused: the options are not valid, or a topic is not as they say.
    """
    try:
        producer = KafkaProducer(options.producer(), topic_prefix=options.topic_prefix)
        topics = KafkaTopics(options, explain=producer.explain)
    except KafkaException as error:
        raise StartRefused(f"Kafka's client refuses its settings: {error.args[0].str()}") from error
    async with producer:
        with suppress(LogUnavailable):  # the watch says so, and goes on
            await topics.prepare()
        log = KafkaLog(options, producer, topics)
        watching = asyncio.create_task(topics.watch(log.forsake), name="kafka-topics")
        try:
            yield log
        finally:
            watching.cancel()
            await asyncio.wait({watching})


class KafkaLog:
    """The log, open: a `Log`."""

    def __init__(self, options: KafkaOptions, producer: KafkaProducer, topics: KafkaTopics) -> None:
        self._options = options
        self._topics = topics
        self._consumers: set[KafkaConsumer] = set()
        self.producer = producer

    @asynccontextmanager
    async def consumer(self, *, topic: str, group: str, listener: PartitionListener) -> AsyncIterator[KafkaConsumer]:
        """Join a group. Its partitions may come later than this returns, or none: other consumers have them.

        Raises:
            LogUnavailable: the log cannot be reached.
            StartRefused: a topic is not as the settings say.
        """
        await self._topics.prepare(self._options.timeout_seconds)
        consumer = KafkaConsumer(
            self._options.consumer(group),
            topic=topic,
            prefix=self._options.topic_prefix,
            listener=listener,
            join_seconds=self._options.timeout_seconds,
            ends=self._topics.ends,
        )
        async with consumer:
            self._consumers.add(consumer)
            try:
                yield consumer
            finally:
                self._consumers.discard(consumer)

    def partition_of(self, topic: str, key: str) -> int:
        """Return the number of a key's partition. See the port."""
        return partition_of(key.encode(), self._options.partitions)

    async def check(self) -> None:
        """Return if the log answers and can be written. Raises LogUnavailable."""
        await self._topics.check(self.producer.client)

    def forsake(self, topic: str) -> None:
        """Let the consumers of a topic be opened again: what they know of it is of another that was deleted."""
        for consumer in self._consumers:
            consumer.forsake(topic)
