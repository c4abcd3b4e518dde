"""What `duologue.log.port` promises, held against every adapter."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pytest
from tests.support.logs import (
    Listener,
    LogUnderTest,
    append_until_acknowledged,
    by_key,
    ends,
    read,
    reading,
    until_ready,
)

from duologue.domain.clock import wall_clock
from duologue.domain.errors import ConsumerRefused, LogUnavailable, OwnershipLost
from duologue.log.port import Log, LogConsumer, LogRecord, Partition

TOPIC = "incoming_messages"
ALL_BYTES = bytes(range(256))


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", ALL_BYTES, b'{"v": 1', b"\xff\xfe not text", b"$3\r\nfoo\r\n", bytes(1_000_000)],
    ids=["empty", "nul", "all-bytes", "broken-json", "not-utf-8", "wire-syntax", "1-mb"],
)
async def test_record_any_value_comes_out_as_it_went_in(logs: LogUnderTest, value: bytes) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", value, {"correlation_id": "c"})
        [record] = await read(consumer, 1)
    assert (record.key, record.value, dict(record.headers)) == ("key", value, {"correlation_id": "c"})


@pytest.mark.parametrize(
    ("key", "headers"),
    [("", {}), ("k", {"": ""}), ("schlüssel 🔑\n\0", {"traceparent": "00-ab-cd-01", "ключ": 'wért"\\\n'})],
)
async def test_record_any_key_and_headers_come_out_as_they_went_in(
    logs: LogUnderTest, key: str, headers: dict[str, str]
) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, key, b"v", headers)
        [record] = await read(consumer, 1)
    assert (record.key, dict(record.headers)) == (key, headers)


async def test_record_read_tells_topic_and_time_of_append(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        before = wall_clock()
        await log.producer.append(TOPIC, "key", b"v", {})
        after = wall_clock()
        [record] = await read(consumer, 1)
    assert record.partition.topic == TOPIC
    assert before <= record.timestamp <= after


async def test_record_is_in_the_partition_that_its_key_was_said_to_go_to(logs: LogUnderTest) -> None:
    keys = ["", "k", "schlüssel 🔑", *(str(uuid.uuid4()) for _ in range(30))]
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, key, b"v", {}) for key in keys))
        for record in await read(consumer, len(keys)):
            assert record.partition.number == log.partition_of(TOPIC, record.key)


async def test_append_many_at_once_keeps_order_of_calls_for_each_key(logs: LogUnderTest) -> None:
    appended = [(f"key-{n % 7}", str(n).encode()) for n in range(700)]
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, key, value, {}) for key, value in appended))
        records = await read(consumer, len(appended))
    expected: dict[str, list[bytes]] = defaultdict(list)
    for key, value in appended:
        expected[key].append(value)
    assert by_key(records) == expected


async def test_append_beside_large_values_keeps_order_of_calls(logs: LogUnderTest) -> None:
    values = [bytes([n]) * (900_000 if n % 3 == 0 else 1) for n in range(12)]
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, "key", value, {}) for value in values))
        assert [record.value for record in await read(consumer, len(values))] == values


async def test_poll_waiting_returns_a_record_at_once_when_it_comes(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        polled = asyncio.create_task(_poll(consumer, 10, 30.0))
        await asyncio.sleep(0)
        await log.producer.append(TOPIC, "key", b"v", {})
        async with asyncio.timeout(5.0):  # far less than the poll's own 30 s
            assert [record.value for record in await polled] == [b"v"]


async def test_poll_nothing_there_returns_none_after_its_time(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        async with asyncio.timeout(5.0):
            assert list(await consumer.poll(10, 0.05)) == []
        await log.producer.append(TOPIC, "key", b"v", {})
        assert len(await read(consumer, 1)) == 1


async def test_poll_more_there_than_asked_for_hands_out_the_rest_next(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        waiting = asyncio.create_task(_poll(consumer, 100, 30.0))
        await asyncio.sleep(0)
        waiting.cancel()  # its read of up to 100 is still under way
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.gather(*(log.producer.append(TOPIC, "key", str(n).encode(), {}) for n in range(10)))
        batches = [await read(consumer, 3, at_once=3) for _ in range(3)]
    assert [record.value for batch in batches for record in batch] == [str(n).encode() for n in range(9)]


async def test_poll_cancelled_again_and_again_loses_nothing(logs: LogUnderTest) -> None:
    values = [str(n).encode() for n in range(200)]
    read_values: list[bytes] = []
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        appending = asyncio.create_task(_append_all(log, values))
        async with asyncio.timeout(20):
            while len(read_values) < len(values):
                polling = asyncio.create_task(_poll(consumer, 3, 1.0))
                await asyncio.wait({polling}, timeout=0.0005)
                polling.cancel()
                [result] = await asyncio.gather(polling, return_exceptions=True)
                if not isinstance(result, BaseException):
                    read_values += [record.value for record in result]
        await appending
    assert read_values == values


async def test_poll_large_backlog_is_read_in_order_and_once(logs: LogUnderTest) -> None:
    values = [str(n).encode() for n in range(5000)]
    async with logs.open() as log:
        await asyncio.gather(*(log.producer.append(TOPIC, "key", value, {}) for value in values))
        async with reading(log, TOPIC) as consumer:
            records = await read(consumer, len(values), at_once=256)
            assert list(await consumer.poll(256, 0.05)) == []
    assert [record.value for record in records] == values
    offsets = [record.offset for record in records]
    assert all(before < after for before, after in itertools.pairwise(offsets))


async def test_poll_large_backlog_of_large_values_is_read_whole(logs: LogUnderTest) -> None:
    values = [bytes([n]) * 500_000 for n in range(40)]
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        for value in values:
            await log.producer.append(TOPIC, "key", value, {})
        assert [record.value for record in await read(consumer, len(values))] == values


async def test_unread_tells_what_poll_has_not_handed_out(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        assert await consumer.unread() == {}
        await _append_all(log, [b"0", b"1", b"2"])
        [(partition, end)] = (await consumer.unread()).items()
        first, second = await read(consumer, 2, at_once=2)
        assert await consumer.unread() == {partition: end}
        [last] = await read(consumer, 1)
        assert (last.partition, last.offset + 1) == (partition, end)
        assert await consumer.unread() == {}
        await consumer.commit(ends([first, second]))
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        assert await consumer.unread() == {partition: end}
        await consumer.commit(ends(await read(consumer, 1)))
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        assert await consumer.unread() == {}


async def test_unread_of_a_paused_partition_stays(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", b"0", {})
        [first] = await read(consumer, 1)
        consumer.pause(first.partition)
        await log.producer.append(TOPIC, "key", b"1", {})
        assert list(await consumer.poll(10, 0.1)) == []
        assert list(await consumer.unread()) == [first.partition]


async def test_unread_engine_away_raises(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", b"0", {})
        logs.engine.stop()
        with pytest.raises(LogUnavailable):
            await consumer.unread()
        logs.engine.start()


async def test_pause_partition_holds_its_records_until_resume(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", b"0", {})
        [first] = await read(consumer, 1)
        consumer.pause(first.partition)
        await log.producer.append(TOPIC, "key", b"1", {})
        assert list(await consumer.poll(10, 0.1)) == []
        consumer.resume(first.partition)
        assert [record.value for record in await read(consumer, 1)] == [b"1"]


async def test_pause_while_a_poll_waits_holds_what_comes(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", b"0", {})
        [first] = await read(consumer, 1)
        waiting = asyncio.create_task(_poll(consumer, 10, 0.3))
        await asyncio.sleep(0)
        consumer.pause(first.partition)
        await log.producer.append(TOPIC, "key", b"1", {})
        assert list(await waiting) == []
        waiting = asyncio.create_task(_poll(consumer, 10, 10.0))
        await asyncio.sleep(0)
        consumer.resume(first.partition)
        assert [record.value for record in await waiting] == [b"1"]


async def test_commit_next_owner_begins_there(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await _append_all(log, [b"0", b"1", b"2"])
        async with reading(log, TOPIC) as consumer:
            records = await read(consumer, 3)
            await consumer.commit(ends(records[:2]))
        async with reading(log, TOPIC) as consumer:
            assert [record.value for record in await read(consumer, 1)] == [b"2"]


async def test_commit_nothing_next_owner_reads_everything_again(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await _append_all(log, [b"0", b"1", b"2"])
        async with reading(log, TOPIC) as consumer:
            first = await read(consumer, 3)
        async with reading(log, TOPIC) as consumer:
            assert await read(consumer, 3) == first


async def test_commit_lower_than_before_never_moves_back(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await _append_all(log, [b"0", b"1", b"2"])
        async with reading(log, TOPIC) as consumer:
            records = await read(consumer, 3)
            await consumer.commit(ends(records[:2]))
            await consumer.commit(ends(records[:1]))
        async with reading(log, TOPIC) as consumer:
            assert [record.value for record in await read(consumer, 1)] == [b"2"]


async def test_commit_while_revoked_is_the_last_chance_and_counts(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await _append_all(log, [b"0", b"1"])
        listener = Listener()
        async with reading(log, TOPIC, listener=listener) as consumer:
            records = await read(consumer, 2)
            listener.on_leaving = lambda: consumer.commit(ends(records[:1]))
        async with reading(log, TOPIC) as consumer:
            assert [record.value for record in await read(consumer, 1)] == [b"1"]


async def test_commit_of_one_group_takes_nothing_from_another(logs: LogUnderTest) -> None:
    values = [str(n).encode() * 100 for n in range(500)]
    async with logs.open() as log:
        async with reading(log, TOPIC, group="slow"):  # it has begun, and committed nothing
            pass
        await _append_all(log, values)
        async with reading(log, TOPIC, group="fast") as fast:
            await fast.commit(ends(await read(fast, 500)))
        async with reading(log, TOPIC, group="slow") as slow:
            assert [record.value for record in await read(slow, 500)] == values


async def test_append_after_everything_was_committed_offsets_go_on(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        async with reading(log, TOPIC) as consumer:
            await _append_all(log, [str(n).encode() for n in range(1000)])
            records = await read(consumer, 1000)
            await consumer.commit(ends(records))
        last = {record.partition: record.offset for record in records}
        async with reading(log, TOPIC) as consumer:
            await log.producer.append(TOPIC, "key", b"next", {})
            [record] = await read(consumer, 1)
    assert record.value == b"next"
    assert record.offset > last[record.partition]


async def test_listener_hears_of_partitions_gained_and_given_up(logs: LogUnderTest) -> None:
    listener = Listener()
    async with logs.open() as log:
        async with reading(log, TOPIC, listener=listener) as consumer:
            await log.producer.append(TOPIC, "key", b"v", {})
            [record] = await read(consumer, 1)
            assert record.partition in _partitions(listener, "assigned")
            assert set(listener.events) == {"assigned"}
        assert _partitions(listener, "revoked") == _partitions(listener, "assigned")


async def test_listener_consumer_left_by_an_error_hears_of_it_as_given_up(logs: LogUnderTest) -> None:
    listener = Listener()
    async with logs.open() as log:
        with pytest.raises(RuntimeError, match="the role failed"):
            async with reading(log, TOPIC, listener=listener):
                raise RuntimeError("the role failed")
        assert listener.events[-1] == "revoked"
        async with reading(log, TOPIC):  # it is free again
            pass


async def test_consumer_second_of_a_group_is_refused_or_shares(logs: LogUnderTest) -> None:
    if not logs.one_consumer_only:
        pytest.skip("this adapter shares partitions between consumers")
    async with logs.open() as log, reading(log, TOPIC) as consumer, logs.open() as other:
        listener = Listener()
        with pytest.raises(ConsumerRefused, match="Kafka"):
            async with reading(other, TOPIC, listener=listener):
                pass
        assert listener.events == []
        async with reading(other, TOPIC, group="another"):  # another group is another matter
            pass
        await log.producer.append(TOPIC, "key", b"v", {})
        assert len(await read(consumer, 1)) == 1


async def test_consumer_taken_over_hears_of_it_and_commits_nothing(logs: LogUnderTest) -> None:
    listener = Listener()
    async with logs.open() as log:
        await _append_all(log, [b"0", b"1"])
        async with reading(log, TOPIC, listener=listener) as consumer:
            records = await read(consumer, 2)
            async with logs.open_successor() as other, reading(other, TOPIC) as successor:
                with pytest.raises(OwnershipLost):
                    await consumer.commit(ends(records))
                async with asyncio.timeout(10):
                    await listener.lost.wait()
                with pytest.raises(OwnershipLost):
                    await consumer.poll(10, 0.0)
                with pytest.raises(OwnershipLost):
                    await consumer.commit(ends(records))
                assert await read(successor, 2) == records
    assert listener.events == ["assigned", "lost"]


async def test_consumer_taken_over_while_it_polls_raises_after_the_listener_heard(logs: LogUnderTest) -> None:
    listener = Listener()
    async with logs.open() as log, reading(log, TOPIC, listener=listener) as consumer:
        polled = asyncio.create_task(_poll(consumer, 10, 60.0))
        async with logs.open_successor() as other, reading(other, TOPIC):
            async with asyncio.timeout(10):
                with pytest.raises(OwnershipLost):
                    await polled
            assert listener.events == ["assigned", "lost"]


async def test_consumer_abandoned_by_a_crash_successor_reads_from_the_last_commit(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await _append_all(log, [str(n).encode() for n in range(6)])
        async with reading(log, TOPIC) as crashed:
            records = await read(crashed, 4)
            await crashed.commit(ends(records[:2]))
            async with logs.open_successor() as other, reading(other, TOPIC) as successor:
                assert [record.value for record in await read(successor, 4)] == [b"2", b"3", b"4", b"5"]


async def test_append_engine_away_fails_in_time_and_goes_on_by_itself(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", b"before", {})
        logs.engine.stop()
        await _assert_append_fails_in_time(log, logs)
        with pytest.raises(LogUnavailable):
            await log.check()
        logs.engine.start()
        await append_until_acknowledged(log, TOPIC, "key", b"after")
        await until_ready(log)
        assert {record.value for record in await read(consumer, 2)} >= {b"before", b"after"}


async def test_append_engine_hangs_fails_in_time_and_goes_on_by_itself(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await log.producer.append(TOPIC, "key", b"before", {})
        logs.engine.pause()
        await _assert_append_fails_in_time(log, logs)
        logs.engine.resume()
        await append_until_acknowledged(log, TOPIC, "key", b"after")


async def test_poll_engine_away_raises_and_goes_on_by_itself(logs: LogUnderTest) -> None:
    async with logs.open() as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", b"0", {})
        assert len(await read(consumer, 1)) == 1
        waiting = asyncio.create_task(_poll(consumer, 10, 60.0))
        await asyncio.sleep(0)
        logs.engine.stop()
        with pytest.raises(LogUnavailable):
            await waiting
        logs.engine.start()
        await append_until_acknowledged(log, TOPIC, "key", b"1")
        assert [record.value for record in await read(consumer, 1)] == [b"1"]


async def test_commit_engine_away_raises_and_counts_when_repeated(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await _append_all(log, [b"0", b"1"])
        async with reading(log, TOPIC) as consumer:
            [first] = await read(consumer, 1, at_once=1)
            logs.engine.stop()
            with pytest.raises(LogUnavailable):
                await consumer.commit(ends([first]))
            logs.engine.start()
            await _commit_patiently(consumer, ends([first]))
        async with reading(log, TOPIC) as consumer:
            assert [record.value for record in await read(consumer, 1)] == [b"1"]


async def test_append_acknowledged_survives_a_kill_of_the_engine(logs: LogUnderTest) -> None:
    acknowledged: list[bytes] = []
    enough = asyncio.Event()

    async def append(value: bytes) -> None:
        await log.producer.append(TOPIC, "key", value, {})
        acknowledged.append(value)
        if len(acknowledged) == 300:
            enough.set()

    async with logs.open() as log:
        appends = [asyncio.create_task(append(str(n).encode())) for n in range(2000)]
        async with asyncio.timeout(10):
            await enough.wait()
        logs.engine.kill()
        await asyncio.gather(*appends, return_exceptions=True)
        logs.engine.start()
        await append_until_acknowledged(log, TOPIC, "key", b"last")
        async with reading(log, TOPIC) as consumer:
            found: list[bytes] = []
            while b"last" not in found:
                found += [record.value for record in await consumer.poll(1000, 1.0)]
    assert len(acknowledged) >= 300
    assert set(acknowledged) <= set(found)
    assert found[:-1] == sorted(found[:-1], key=int)


async def test_commit_acknowledged_survives_a_kill_of_the_engine(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        await _append_all(log, [b"0", b"1", b"2"])
        async with reading(log, TOPIC) as consumer:
            await consumer.commit(ends((await read(consumer, 3))[:2]))
            logs.engine.kill()
            logs.engine.start()
    async with logs.open_successor() as log, reading(log, TOPIC) as consumer:
        assert [record.value for record in await read(consumer, 1)] == [b"2"]


async def _poll(consumer: LogConsumer, max_records: int, seconds: float) -> Sequence[LogRecord]:
    """Poll as a coroutine, which a task can run."""
    return await consumer.poll(max_records, seconds)


async def _append_all(log: Log, values: Sequence[bytes]) -> None:
    await asyncio.gather(*(log.producer.append(TOPIC, "key", value, {}) for value in values))


async def _assert_append_fails_in_time(log: Log, logs: LogUnderTest) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(LogUnavailable):
        await log.producer.append(TOPIC, "key", b"lost", {})
    assert asyncio.get_running_loop().time() - began < logs.append_timeout_seconds + 0.5  # a busy machine's slack


async def _commit_patiently(consumer: LogConsumer, offsets: Mapping[Partition, int]) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                return await consumer.commit(offsets)
            except LogUnavailable:
                await asyncio.sleep(0.02)


def _partitions(listener: Listener, event: str) -> set[Partition]:
    return {partition for heard, partitions in listener.heard if heard == event for partition in partitions}
