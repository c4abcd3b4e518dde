"""The Kafka log's own ways: shared partitions, topics, absence, what it refuses, how it signs in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from tests.support.logs import Listener, append_until_acknowledged, ends, read, reading
from tests.support.owner import Owner
from tests.support.proxied_kafka import ProxiedKafka
from tests.support.tcp_proxy import Link

from duologue.domain.errors import OwnershipLost, Permanent, StartRefused
from duologue.log.kafka import KafkaLog, open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import Partition

TOPIC = "incoming_messages"
DEADLINE_SECONDS = 30.0


async def test_consumers_of_a_group_share_the_partitions_and_inherit_them(log: KafkaLog, options: KafkaOptions) -> None:
    first, second = Owner(), Owner()
    async with reading(log, TOPIC, listener=first):
        await first.until(lambda owned: len(owned) == 4)
        async with open_kafka_log(options) as other, reading(other, TOPIC, listener=second):
            await second.until(lambda owned: len(owned) == 2)
            await first.until(lambda owned: len(owned) == 2)
            assert first.owned.isdisjoint(second.owned)
            assert first.events == ["assigned", "revoked"]
        await first.until(lambda owned: len(owned) == 4)
    assert not second.owned


async def test_consumer_left_with_more_consumers_than_partitions_has_none(options: KafkaOptions) -> None:
    options = replace(options, partitions=1)
    async with open_kafka_log(options) as log, AsyncExitStack() as stack:
        listeners = [Owner(), Owner()]
        for listener in listeners:
            await stack.enter_async_context(reading(log, TOPIC, listener=listener))
        assert sorted(len(listener.owned) for listener in listeners) == [0, 1]


async def test_revocation_that_takes_too_long_is_cut_and_commits_nothing_more(
    log: KafkaLog, options: KafkaOptions
) -> None:
    first, second = Owner(), Owner()
    released, refusals = asyncio.Event(), []

    async with reading(log, TOPIC, listener=first) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, str(n), b"v", {}) for n in range(40)))
        records = await read(consumer, 40)

        async def linger() -> None:
            await released.wait()
            try:
                await consumer.commit(ends([r for r in records if r.partition in second.owned]))
            except OwnershipLost as refusal:
                refusals.append(refusal)

        first.on_leaving = linger
        async with open_kafka_log(options) as other, reading(other, TOPIC, listener=second) as successor:
            await second.until(lambda owned: len(owned) == 2)  # it did not wait for the listener
            released.set()
            again = await read(successor, sum(record.partition in second.owned for record in records))
            assert {record.partition for record in again} == second.owned
            await first.until(lambda owned: len(owned) == 2)
            first.on_leaving = None
    assert refusals


async def test_consumer_whose_caller_does_not_poll_keeps_its_partitions(options: KafkaOptions) -> None:
    options = replace(options, max_poll_seconds=4.0, session_timeout_seconds=4.0)
    listener = Listener()
    async with open_kafka_log(options) as log, reading(log, TOPIC, listener=listener) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, str(n % 9), bytes(2000), {}) for n in range(5000)))
        await asyncio.sleep(5.5)  # what is tested is that time alone does nothing
        assert listener.events == ["assigned"]
        records = await read(consumer, 5000)
        await consumer.commit(ends(records))
    positions = sorted((record.partition, record.offset) for record in records)
    assert len(set(positions)) == 5000


async def test_consumer_whose_joining_is_never_answered_joins_anew(
    session_kafka: ProxiedKafka, options: KafkaOptions
) -> None:
    unanswered: list[Link] = []

    def is_unanswered(link: Link) -> bool:
        if not unanswered and b"cooperative-sticky" in link.first:  # as a request to join says
            unanswered.append(link)
        return link in unanswered

    owner = Owner()
    async with session_kafka.proxy() as proxy:
        proxy.deaf_to = is_unanswered
        options = replace(options, bootstrap_servers=session_kafka.proxied_bootstrap_servers)
        async with open_kafka_log(options) as log, reading(log, TOPIC, listener=owner):
            await owner.until(lambda owned: len(owned) == 4)
    assert len(unanswered) == 1


async def test_pause_of_one_partition_lets_the_others_go_on(log: KafkaLog) -> None:
    async with reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, str(n), b"0", {}) for n in range(40)))
        paused = (await read(consumer, 40))[0].partition
        consumer.pause(paused)
        await asyncio.gather(*(log.producer.append(TOPIC, str(n), b"1", {}) for n in range(40)))
        others = [record for _ in range(5) for record in await consumer.poll(100, 0.2)]
        assert others
        assert paused not in {record.partition for record in others}
        consumer.resume(paused)
        rest = await read(consumer, 40 - len(others))
        assert {record.partition for record in rest} == {paused}


async def test_open_invalid_setting_is_refused(options: KafkaOptions) -> None:
    with pytest.raises(StartRefused, match="refuses its settings"):
        async with open_kafka_log(replace(options, security={"security.protocol": "nonsense"})):
            pass


async def test_append_too_large_is_refused_for_good(log: KafkaLog) -> None:
    with pytest.raises(Permanent, match="too large"):
        await log.producer.append(TOPIC, "key", bytes(3_000_000), {})


async def test_append_empty_keys_keep_their_order(log: KafkaLog) -> None:
    async with reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, "", str(n).encode(), {}) for n in range(100)))
        assert [record.value for record in await read(consumer, 100)] == [str(n).encode() for n in range(100)]


async def test_append_after_a_fatal_error_goes_on_with_a_new_producer(log: KafkaLog) -> None:
    before = log.producer.client
    log.producer._on_error(KafkaError(KafkaError._FATAL, "out of sequence", fatal=True))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while log.producer.client is before:
            await append_until_acknowledged(log, TOPIC, "key", b"v")
    await append_until_acknowledged(log, TOPIC, "key", b"v")


async def test_append_cancelled_leaves_the_others_alone(log: KafkaLog) -> None:
    cancelled = asyncio.create_task(log.producer.append(TOPIC, "key", b"0", {}))
    kept = asyncio.create_task(log.producer.append(TOPIC, "key", b"1", {}))
    await asyncio.sleep(0)
    cancelled.cancel()
    await kept


async def test_poll_record_of_another_writer_comes_out_as_far_as_it_can(log: KafkaLog, options: KafkaOptions) -> None:
    produce = partial(log.producer.client.produce, options.topic_prefix + TOPIC)
    produce(None, None)
    produce(b"\xff", b"\xff", headers=[("h", b"\xff"), ("n", None)])
    async with reading(log, TOPIC) as consumer:
        found = {record.value: record for record in await read(consumer, 2)}
    assert (found[b""].key, found[b""].headers) == ("", {})
    assert (found[b"\xff"].key, found[b"\xff"].headers) == ("\\xff", {"h": "\\xff", "n": ""})


async def test_consumer_listener_that_fails_is_heard_of_by_poll_and_when_left(log: KafkaLog) -> None:
    class Failing(Listener):
        async def on_assigned(self, partitions: Sequence[Partition]) -> None:
            raise RuntimeError("it cannot begin")

    with pytest.raises(RuntimeError, match="it cannot begin"):
        async with reading(log, TOPIC, listener=Failing()):
            pass


async def test_commit_while_another_is_under_way_keeps_their_order(log: KafkaLog) -> None:
    async with reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, "key", b"v", {}) for _ in range(50)))
        records = await read(consumer, 50)
        await asyncio.gather(*(consumer.commit(ends(records[:n])) for n in range(1, 41)))
    async with reading(log, TOPIC) as consumer:
        assert (await read(consumer, 1))[0].offset == records[40].offset


async def test_record_larger_than_the_client_s_own_limit_is_read_and_what_follows_too(
    log: KafkaLog, options: KafkaOptions
) -> None:
    """Where an operator has raised the topic's limit, others may append what this program never would."""
    entry = ConfigEntry("max.message.bytes", "24000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource("topic", options.topic_prefix + TOPIC, incremental_configs=[entry])
    admin = AdminClient(options.client())
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result()
    large = os.urandom(20_000_000)
    other = Producer({"bootstrap.servers": options.bootstrap_servers, "message.max.bytes": 24_000_000})
    for value in (b"before", large, b"after"):
        other.produce(options.topic_prefix + TOPIC, value, b"key", partition=0)
    assert other.flush(20) == 0
    async with reading(log, TOPIC) as consumer:
        assert [record.value for record in await read(consumer, 3)] == [b"before", large, b"after"]
