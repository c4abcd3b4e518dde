"""The Kafka log's own ways: shared partitions, topics, absence, what it refuses, how it signs in."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.cimpl import NewTopic
from tests.support.logs import Listener, append_until_acknowledged, ends, read, reading

from duologue.cluster.kafka import SASL_USER, KafkaServer
from duologue.domain.errors import LogUnavailable, OwnershipLost, Permanent, StartRefused
from duologue.log.kafka import KafkaLog, open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import LogConsumer, LogRecord, Partition

TOPIC = "incoming_messages"
DEADLINE_SECONDS = 30.0


@pytest.fixture
def options(kafka: KafkaServer) -> KafkaOptions:
    """A log of the test's own."""
    return KafkaOptions(
        kafka.bootstrap_servers, partitions=4, topic_prefix=f"{uuid.uuid4()}-", timeout_seconds=3.0, client_id="test"
    )


@pytest.fixture
async def log(options: KafkaOptions) -> AsyncIterator[KafkaLog]:
    async with open_kafka_log(options) as log:
        yield log


class Owner(Listener):
    """Knows what it owns, and tells when that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.owned: set[Partition] = set()
        self._changed = asyncio.Event()

    async def on_assigned(self, partitions: Sequence[Partition]) -> None:
        await super().on_assigned(partitions)
        self._set(self.owned | set(partitions))

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        await super().on_revoked(partitions)
        self._set(self.owned - set(partitions))

    async def on_lost(self, partitions: Sequence[Partition]) -> None:
        await super().on_lost(partitions)
        self._set(self.owned - set(partitions))

    async def until(self, condition: Callable[[set[Partition]], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition(self.owned):
                self._changed.clear()
                await self._changed.wait()

    def _set(self, owned: set[Partition]) -> None:
        self.owned = owned
        self._changed.set()


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


async def test_rebalance_under_load_hands_each_record_out_and_commits_none_unread(
    log: KafkaLog, options: KafkaOptions
) -> None:
    """Consumers come and go; each commits what it has read. Some may be read twice, none is missing."""
    total = 1500
    seen: set[bytes] = set()
    done = asyncio.Event()

    async def consume(consumer: LogConsumer) -> None:
        while not done.is_set():
            records = await consumer.poll(50, 0.1)
            seen.update(record.value for record in records)
            if records:
                await _commit_if_owned(consumer, records)
            if len(seen) == total:
                done.set()

    async def come_and_go() -> None:
        for _ in range(3):
            async with open_kafka_log(options) as other, reading(other, TOPIC, listener=Owner()) as consumer:
                working = asyncio.create_task(consume(consumer))
                await asyncio.wait({working}, timeout=1.5)
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    async with asyncio.timeout(60), reading(log, TOPIC) as consumer, asyncio.TaskGroup() as group:
        group.create_task(consume(consumer))
        group.create_task(come_and_go())
        for n in range(total):
            await log.producer.append(TOPIC, str(n % 40), str(n).encode(), {})
    assert seen == {str(n).encode() for n in range(total)}


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
    options = replace(options, max_poll_seconds=2.0, session_timeout_seconds=2.0)
    listener = Listener()
    async with open_kafka_log(options) as log, reading(log, TOPIC, listener=listener) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, str(n % 9), bytes(2000), {}) for n in range(5000)))
        await asyncio.sleep(3.5)  # what is tested is that time alone does nothing
        assert listener.events == ["assigned"]
        records = await read(consumer, 5000)
        await consumer.commit(ends(records))
    positions = sorted((record.partition, record.offset) for record in records)
    assert len(set(positions)) == 5000


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


async def test_consumer_unheard_of_for_a_session_is_lost_and_opens_again(
    kafka: KafkaServer, options: KafkaOptions
) -> None:
    listener = Listener()
    async with open_kafka_log(replace(options, session_timeout_seconds=2.0)) as log:
        async with reading(log, TOPIC, listener=listener) as consumer:
            await log.producer.append(TOPIC, "key", b"v", {})
            await read(consumer, 1)
            kafka.pause()
            async with asyncio.timeout(DEADLINE_SECONDS):
                await _poll_until_lost(consumer)
            kafka.resume()
        async with asyncio.timeout(DEADLINE_SECONDS), reading(log, TOPIC) as consumer:
            assert [record.value for record in await read(consumer, 1)] == [b"v"]
    assert listener.events == ["assigned", "lost"]


async def test_open_kafka_away_waits_and_makes_its_topics_when_it_comes(
    kafka: KafkaServer, options: KafkaOptions
) -> None:
    kafka.stop()
    async with open_kafka_log(options) as log:
        with pytest.raises(LogUnavailable):
            await log.check()
        with pytest.raises(LogUnavailable):
            async with reading(log, TOPIC):
                pass
        with pytest.raises(LogUnavailable):
            await log.producer.append(TOPIC, "key", b"v", {})
        kafka.start()
        await append_until_acknowledged(log, TOPIC, "key", b"v")
        await log.check()
        async with reading(log, TOPIC) as consumer:
            assert len(await read(consumer, 1)) == 1


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


async def test_open_invalid_setting_is_refused(options: KafkaOptions) -> None:
    with pytest.raises(StartRefused, match="refuses its settings"):
        async with open_kafka_log(replace(options, security={"security.protocol": "nonsense"})):
            pass


@pytest.mark.parametrize(("password", "well"), [(SASL_USER[1], True), ("wrong", False)])
async def test_open_with_sasl_signs_in_by_password(
    kafka: KafkaServer, options: KafkaOptions, password: str, well: bool
) -> None:
    security = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": SASL_USER[0],
        "sasl.password": password,
    }
    options = replace(options, bootstrap_servers=kafka.sasl_bootstrap_servers, security=security)
    async with open_kafka_log(options) as log:
        if well:
            await log.producer.append(TOPIC, "key", b"v", {})
            return
        with pytest.raises(LogUnavailable):
            await log.check()


async def test_append_too_large_is_refused_for_good(log: KafkaLog) -> None:
    with pytest.raises(Permanent, match="too large"):
        await log.producer.append(TOPIC, "key", bytes(3_000_000), {})


async def test_append_empty_keys_keep_their_order(log: KafkaLog) -> None:
    async with reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, "", str(n).encode(), {}) for n in range(100)))
        assert [record.value for record in await read(consumer, 100)] == [str(n).encode() for n in range(100)]


async def test_append_more_than_may_wait_is_unavailable_at_once(
    kafka: KafkaServer, options: KafkaOptions, log: KafkaLog
) -> None:
    kafka.pause()
    loop = asyncio.get_running_loop()
    began = loop.time()
    appends = [asyncio.create_task(log.producer.append(TOPIC, str(n), bytes(100), {})) for n in range(20_100)]
    done, _ = await asyncio.wait(appends, return_when=asyncio.FIRST_EXCEPTION)
    assert loop.time() - began < options.timeout_seconds / 2
    assert all("too many appends wait" in str(each.exception()) for each in done)
    kafka.resume()
    await asyncio.gather(*appends, return_exceptions=True)
    await append_until_acknowledged(log, TOPIC, "key", b"v")


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


async def _commit_if_owned(consumer: LogConsumer, records: Sequence[LogRecord]) -> None:
    """Commit each partition by itself: one may have been given up meanwhile."""
    for partition, offset in ends(records).items():
        try:
            await consumer.commit({partition: offset})
        except (OwnershipLost, LogUnavailable):
            continue


async def _poll_until_lost(consumer: LogConsumer) -> None:
    while True:
        try:
            await consumer.poll(10, 0.5)
        except LogUnavailable:
            await asyncio.sleep(0.1)
        except OwnershipLost:
            return
