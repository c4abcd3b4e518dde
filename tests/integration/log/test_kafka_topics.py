"""The topics on Kafka: made, refused, and made again by others under a running system."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest
import structlog
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewPartitions, NewTopic
from prometheus_client import REGISTRY
from tests.support.logs import append_until_acknowledged, ends, poll_until_lost, read, reading, until_ready
from tests.support.pipeline import until

from duologue.domain.errors import LogUnavailable, StartRefused
from duologue.log.kafka import KafkaLog, open_kafka_log
from duologue.log.kafka_options import KafkaOptions

TOPIC = "incoming_messages"
DEADLINE_SECONDS = 30.0


async def test_topics_made_have_the_settings_retention_and_size(log: KafkaLog, options: KafkaOptions) -> None:
    admin = AdminClient(options.client())
    resource = ConfigResource("topic", options.topic_prefix + "responses.dlq")
    [asked] = admin.describe_configs([resource]).values()
    found = {name: entry.value for name, entry in asked.result().items()}
    assert found["retention.ms"] == str(7 * 24 * 3600 * 1000)
    assert found["max.message.bytes"] == str(2 * 1024 * 1024)
    assert found["min.insync.replicas"] == "1"


async def test_open_topic_with_another_number_of_partitions_is_refused(options: KafkaOptions) -> None:
    admin = AdminClient(options.client())
    name = options.topic_prefix + TOPIC
    for made in admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1)]).values():
        made.result()
    with pytest.raises(StartRefused, match="has 2 partitions, and KAFKA_PARTITIONS is 4"):
        async with open_kafka_log(options):
            pass


async def test_open_more_replicas_than_brokers_is_unavailable_and_says_so(options: KafkaOptions) -> None:
    async with open_kafka_log(replace(options, replication_factor=3)) as log:
        with pytest.raises(LogUnavailable, match="eplication factor"):
            await log.check()


async def test_topics_made_can_be_read_at_once(options: KafkaOptions) -> None:
    """A consumer that finds a partition without its leader, as they are for a moment, comes back a second later."""
    options = replace(options, partitions=30)
    admin = AdminClient(options.client())
    async with open_kafka_log(options):
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        partitions = {TopicPartition(options.topic_prefix + TOPIC, number): latest for number in range(30)}
        asked = admin.list_offsets(partitions)
        assert [each.exception() for each in asked.values()] == [None] * 30


async def test_open_topic_that_acknowledges_what_fewer_replicas_have_is_refused(options: KafkaOptions) -> None:
    async with open_kafka_log(options):
        pass
    with pytest.raises(StartRefused, match=r"min\.insync\.replicas"):
        async with open_kafka_log(replace(options, min_insync_replicas=2)):
            pass


@pytest.mark.parametrize(
    ("settings", "refusal", "doubt"),
    [({"cleanup.policy": "compact"}, "is compacted", ""), ({"retention.ms": "60000"}, "", "less than 7 days")],
)
async def test_open_topic_made_otherwise_is_refused_or_taken_with_a_warning(
    options: KafkaOptions, settings: dict[str, str], refusal: str, doubt: str
) -> None:
    name, admin = options.topic_prefix + TOPIC, AdminClient(options.client())
    admin.create_topics([NewTopic(name, 4, 1, config=settings)])[name].result()
    with structlog.testing.capture_logs() as logs:
        if refusal:
            with pytest.raises(StartRefused, match=refusal):
                async with open_kafka_log(options):
                    pass
            return
        async with open_kafka_log(options) as log:
            await log.check()
    warnings = [entry["setting"] for entry in logs if entry["event"] == "kafka_topic_doubtful"]
    assert any(doubt in warning for warning in warnings)


async def test_check_partitions_added_by_others_says_so(options: KafkaOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.log.kafka_topics._WATCH_SECONDS", 0.1)
    name, admin = options.topic_prefix + TOPIC, AdminClient(options.client())
    async with open_kafka_log(options) as log:
        await log.check()
        admin.create_partitions([NewPartitions(name, 5)])[name].result()
        await until(partial(_check_says, log, "has 5 partitions, and KAFKA_PARTITIONS is 4"))


@pytest.mark.parametrize(("watch_seconds", "records"), [(0.1, 20), (60.0, 3)], ids=["watch", "offsets"])
async def test_topic_deleted_and_made_again_is_read_from_its_beginning(
    options: KafkaOptions, monkeypatch: pytest.MonkeyPatch, watch_seconds: float, records: int
) -> None:
    """Its records have the offsets of others that were read before: neither are they skipped, nor is that silent."""
    monkeypatch.setattr("duologue.log.kafka_topics._WATCH_SECONDS", watch_seconds)
    options = replace(options, partitions=1)
    name, admin = options.topic_prefix + TOPIC, AdminClient(options.client())
    async with open_kafka_log(options) as log:
        with structlog.testing.capture_logs() as logs:
            async with reading(log, TOPIC) as consumer:
                for _ in range(10):
                    await log.producer.append(TOPIC, "key", b"old", {})
                await consumer.commit(ends(await read(consumer, 10)))
                admin.delete_topics([name])[name].result()
                await _create(admin, name)
                for n in range(records):
                    await append_until_acknowledged(log, TOPIC, "key", str(n).encode())
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await poll_until_lost(consumer)
        async with reading(log, TOPIC) as consumer:
            again = await read(consumer, records)
    assert [(record.offset, record.value) for record in again] == [(n, str(n).encode()) for n in range(records)]
    assert {entry["event"] for entry in logs if entry["log_level"] == "error"} <= {
        "kafka_topic_remade",
        "log_went_back",
    }
    assert [entry for entry in logs if entry["log_level"] == "error"]


async def test_topic_deleted_is_made_again(options: KafkaOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.log.kafka_topics._WATCH_SECONDS", 0.1)
    name, admin = options.topic_prefix + TOPIC, AdminClient(options.client())
    async with open_kafka_log(options) as log:
        admin.delete_topics([name])[name].result()
        await until(partial(_check_says, log, "Kafka"))
        await until_ready(log)
        await append_until_acknowledged(log, TOPIC, "key", b"v")


async def test_records_removed_before_they_were_read_are_told_of(log: KafkaLog, options: KafkaOptions) -> None:
    async with reading(log, TOPIC) as consumer:
        for n in range(20):
            await log.producer.append(TOPIC, "key", str(n).encode(), {})
        await consumer.commit(ends((await read(consumer, 20))[:5]))
    missed = _records_missed()
    partition = next(iter(await _partition_of_key(log)))
    admin, removed = AdminClient(options.client()), TopicPartition(options.topic_prefix + TOPIC, partition, 8)
    admin.delete_records([removed])[removed].result()
    with structlog.testing.capture_logs() as logs:
        async with reading(log, TOPIC) as consumer:
            assert (await read(consumer, 1))[0].value == b"8"
    told = [entry for entry in logs if entry["event"] == "log_records_missed"]
    assert [(entry["log_level"], entry["first"], entry["end"]) for entry in told] == [("error", 5, 8)]
    assert _records_missed() - missed == 3


def _records_missed() -> float:
    return REGISTRY.get_sample_value("duologue_records_missed_total", {"topic": TOPIC}) or 0.0


async def _partition_of_key(log: KafkaLog) -> set[int]:
    async with reading(log, TOPIC, group="another") as consumer:
        return {record.partition.number for record in await read(consumer, 20)}


async def _create(admin: AdminClient, name: str) -> None:
    """Make a topic whose deletion brokers may still be busy with."""
    await until(lambda: admin.create_topics([NewTopic(name, 1, 1)])[name].exception() is None)


async def _check_says(log: KafkaLog, words: str) -> bool:
    try:
        await log.check()
    except LogUnavailable as error:
        return words in str(error)
    return False
