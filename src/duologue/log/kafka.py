"""The log on Kafka, for many machines: partitions shared between the consumers of a group (rule Owner)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from confluent_kafka import KafkaException

from duologue.domain.errors import LogUnavailable, Permanent, StartRefused
from duologue.log.kafka_consumer import KafkaConsumer
from duologue.log.kafka_options import KafkaOptions
from duologue.log.kafka_producer import KafkaProducer
from duologue.log.kafka_topics import KafkaTopics
from duologue.log.port import PartitionListener
from duologue.log.until_done import until_done

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_kafka_log(options: KafkaOptions) -> AsyncIterator[KafkaLog]:
    """Open the log. A Kafka that is away is no error here: its topics are made when it is back.

    Raises:
        StartRefused: the options are not valid, or a topic is not as they say.
    """
    topics = KafkaTopics(options)
    try:
        producer = KafkaProducer(options.producer(), topic_prefix=options.topic_prefix)
    except KafkaException as error:
        raise StartRefused(f"Kafka's client refuses its settings: {error.args[0].str()}") from error
    async with producer:
        try:
            await topics.prepare(producer.client)
        except LogUnavailable as error:
            _log.warning("kafka_away", error=str(error))
        preparing = asyncio.create_task(_prepare(topics, producer), name="kafka-topics")
        try:
            yield KafkaLog(options, producer, topics)
        finally:
            preparing.cancel()
            await asyncio.wait({preparing})


async def _prepare(topics: KafkaTopics, producer: KafkaProducer) -> None:
    """See that the topics are made, however late Kafka comes. What is wrong with them is raised to who reads them."""
    try:
        await until_done(lambda: topics.prepare(producer.client), what="prepare_kafka_topics")
    except Permanent as error:
        _log.error("kafka_topics_refused", error=str(error))


class KafkaLog:
    """The log, open: a `Log`."""

    def __init__(self, options: KafkaOptions, producer: KafkaProducer, topics: KafkaTopics) -> None:
        self._options = options
        self._topics = topics
        self.producer = producer

    @asynccontextmanager
    async def consumer(self, *, topic: str, group: str, listener: PartitionListener) -> AsyncIterator[KafkaConsumer]:
        """Join a group. Its partitions may come later than this returns, or none: other consumers have them.

        Raises:
            LogUnavailable: the log cannot be reached.
            StartRefused: a topic is not as the settings say.
        """
        await self._topics.prepare(self.producer.client)
        consumer = KafkaConsumer(
            self._options.consumer(group),
            topic=topic,
            prefix=self._options.topic_prefix,
            listener=listener,
            join_seconds=self._options.timeout_seconds,
        )
        async with consumer:
            yield consumer

    async def check(self) -> None:
        """Return if the log answers and can be written. Raises LogUnavailable."""
        try:
            await self._topics.prepare(self.producer.client)
        except StartRefused as error:
            raise LogUnavailable(str(error)) from error
