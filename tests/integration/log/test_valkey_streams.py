"""The Streams log's own ways: offsets, trimming, locks, what it refuses, foreign entries."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.support.logs import Listener, append_until_acknowledged, ends, read, reading

from duologue.cluster.valkey import ValkeyServer
from duologue.domain.errors import ConsumerRefused, LogUnavailable, OwnershipLost, StartRefused
from duologue.engines.redis import Redis
from duologue.log.port import Partition
from duologue.log.valkey_lock import LockTimes
from duologue.log.valkey_streams import StreamsLog, open_streams_log

TOPIC = "incoming_messages"
PARTITION = Partition(TOPIC, 0)
LOCK_TIMES = LockTimes(valid_seconds=1.0, renew_seconds=0.2, wait_seconds=2.0)


def opened(
    url: str, *, takeover: bool = False, timeout_seconds: float = 1.0
) -> AbstractAsyncContextManager[StreamsLog]:
    return open_streams_log(url, takeover=takeover, timeout_seconds=timeout_seconds, lock_times=LOCK_TIMES)


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    async with Redis(valkey, name="test") as redis:
        yield redis


async def test_append_offsets_count_from_one_without_gaps(valkey: str) -> None:
    async with opened(valkey) as log, reading(log, TOPIC) as consumer:
        for _ in range(3):
            await asyncio.gather(*(log.producer.append(TOPIC, "key", b"v", {}) for _ in range(400)))
            await consumer.commit(ends(await read(consumer, 400)))
        await log.producer.append(TOPIC, "key", b"v", {})
        [record] = await read(consumer, 1)
    assert record.offset == 1201


@pytest.mark.parametrize("rewritten", [False, True], ids=["as-written", "rewritten"])
async def test_append_offsets_go_on_without_gaps_after_a_restart_of_an_empty_log(
    valkey_server: ValkeyServer, rewritten: bool
) -> None:
    async with opened(valkey_server.url) as log, reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, "key", b"v", {}) for _ in range(300)))
        await consumer.commit(ends(await read(consumer, 300)))
        if rewritten:
            _rewrite(valkey_server)
        valkey_server.restart()
        await append_until_acknowledged(log, TOPIC, "key", b"next")
        [record] = await read(consumer, 1)
    assert (record.offset, record.value) == (301, b"next")


async def test_append_dead_letters_keeps_about_ten_thousand(valkey: str, redis: Redis) -> None:
    async with opened(valkey, timeout_seconds=30.0) as log:  # so many at once take their time
        await asyncio.gather(*(log.producer.append("topic.dlq", "key", b"v", {}) for _ in range(10_500)))
    assert 10_000 <= await redis.call("XLEN", "log:topic.dlq") <= 10_200


async def test_commit_trims_what_every_group_has_done(valkey: str, redis: Redis) -> None:
    async with (
        opened(valkey) as log,
        reading(log, TOPIC, group="one") as one,
        reading(log, TOPIC, group="two") as two,
    ):
        await asyncio.gather(*(log.producer.append(TOPIC, "key", b"v", {}) for _ in range(1000)))
        await one.commit({PARTITION: 1001})
        assert await redis.call("XLEN", "log:incoming_messages") == 1000
        await two.commit({PARTITION: 501})
        assert 500 <= await redis.call("XLEN", "log:incoming_messages") < 700
        await two.commit({PARTITION: 1001})
        assert await redis.call("XLEN", "log:incoming_messages") < 200


async def test_commit_of_a_foreign_partition_is_refused(valkey: str) -> None:
    async with opened(valkey) as log, reading(log, TOPIC) as consumer:
        with pytest.raises(OwnershipLost):
            await consumer.commit({Partition("responses", 0): 5})


async def test_commit_out_of_memory_still_trims(valkey_server: ValkeyServer) -> None:
    async with opened(valkey_server.url) as log, reading(log, TOPIC) as consumer:
        await asyncio.gather(*(log.producer.append(TOPIC, "key", bytes(10_000), {}) for _ in range(300)))
        records = await read(consumer, 300)
        valkey_server.execute("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(LogUnavailable, match="OOM"):
            await log.producer.append(TOPIC, "key", b"v", {})
        await consumer.commit(ends(records))
        valkey_server.execute("CONFIG", "SET", "maxmemory", "100mb")
        await log.producer.append(TOPIC, "key", b"v", {})
        assert len(await read(consumer, 1)) == 1


async def test_poll_entry_of_another_writer_comes_out_as_far_as_it_can(valkey: str, redis: Redis) -> None:
    await redis.call("XADD", "log:incoming_messages", "0-*", "foo", "bar")
    await redis.call("XADD", "log:incoming_messages", "0-*", "v", b"\xff", "k", b"\xff", "h", "[1", "t", "-")
    async with opened(valkey) as log, reading(log, TOPIC) as consumer:
        await log.producer.append(TOPIC, "key", b"good", {})
        foreign, broken, good = await read(consumer, 3)
    assert (foreign.key, foreign.value, foreign.headers, foreign.timestamp) == ("", b"", {}, 0)
    assert (broken.key, broken.value, broken.headers, broken.timestamp) == ("\\xff", b"\xff", {}, 0)
    assert good.value == b"good"


async def test_consumer_dead_holder_is_succeeded_when_its_lock_ends(valkey: str, redis: Redis) -> None:
    await redis.call("SET", "log:incoming_messages:owner:group", "the dead one's", "PX", 1000)
    listener = Listener()
    async with opened(valkey) as log, reading(log, TOPIC, listener=listener):
        assert listener.heard == [("assigned", [PARTITION])]


async def test_consumer_dead_holder_is_succeeded_at_once_by_takeover(valkey: str, redis: Redis) -> None:
    await redis.call("SET", "log:incoming_messages:owner:group", "the dead one's", "PX", 60_000)
    async with asyncio.timeout(1.5), opened(valkey, takeover=True) as log, reading(log, TOPIC):
        pass


async def test_consumer_living_holder_renews_its_lock_and_the_second_is_refused(valkey: str) -> None:
    holder, second = Listener(), Listener()
    async with opened(valkey) as log, reading(log, TOPIC, listener=holder):
        with pytest.raises(ConsumerRefused, match="the Streams log allows one"):
            async with reading(log, TOPIC, listener=second):  # waits for longer than a lock lives
                pass
        assert holder.events == ["assigned"]
    assert second.events == []


async def test_consumer_left_gives_its_lock_up(valkey: str, redis: Redis) -> None:
    async with opened(valkey) as log, reading(log, TOPIC):
        assert await redis.call("EXISTS", "log:incoming_messages:owner:group") == 1
    assert await redis.call("EXISTS", "log:incoming_messages:owner:group") == 0


async def test_consumer_taken_over_leaves_the_other_ones_lock(valkey: str, redis: Redis) -> None:
    listener = Listener()
    async with opened(valkey) as log, reading(log, TOPIC, listener=listener):
        await redis.call("SET", "log:incoming_messages:owner:group", "another's")
        async with asyncio.timeout(5):
            await listener.lost.wait()
    assert await redis.call("GET", "log:incoming_messages:owner:group") == b"another's"


async def test_consumer_commit_that_finds_another_owner_tells_the_listener_at_once(valkey: str, redis: Redis) -> None:
    listener = Listener()
    times = LockTimes(renew_seconds=60.0)
    async with (
        open_streams_log(valkey, takeover=False, lock_times=times) as log,
        reading(log, TOPIC, listener=listener) as consumer,
    ):
        await redis.call("SET", "log:incoming_messages:owner:group", "another's")
        with pytest.raises(OwnershipLost):
            await consumer.commit({PARTITION: 2})
        async with asyncio.timeout(5):
            await listener.lost.wait()
    assert await redis.call("HGET", "log:incoming_messages:cursors", "group") == b"1"


async def test_consumer_no_renewal_for_the_locks_life_is_lost(valkey_server: ValkeyServer) -> None:
    listener = Listener()
    async with opened(valkey_server.url) as log:
        async with reading(log, TOPIC, listener=listener) as consumer:
            valkey_server.stop()
            async with asyncio.timeout(5):
                await listener.lost.wait()
            with pytest.raises(OwnershipLost):
                await consumer.poll(1, 0.0)
        valkey_server.start()
        await append_until_acknowledged(log, TOPIC, "key", b"v")
        async with reading(log, TOPIC) as consumer:
            assert len(await read(consumer, 1)) == 1
    assert listener.events == ["assigned", "lost"]


async def test_consumer_short_absence_of_the_engine_keeps_ownership(valkey_server: ValkeyServer) -> None:
    listener = Listener()
    async with (
        open_streams_log(valkey_server.url, takeover=False, timeout_seconds=1.0) as log,
        reading(log, TOPIC, listener=listener) as consumer,
    ):
        await log.producer.append(TOPIC, "key", b"0", {})
        await read(consumer, 1)
        valkey_server.kill()
        valkey_server.start()
        await append_until_acknowledged(log, TOPIC, "key", b"1")
        records = await read(consumer, 1)
        await consumer.commit(ends(records))
    assert listener.events == ["assigned", "revoked"]


async def test_consumer_listener_that_fails_is_heard_of_when_the_consumer_is_left(valkey: str, redis: Redis) -> None:
    class Failing(Listener):
        async def on_lost(self, partitions: Any) -> None:
            raise RuntimeError("it cannot stop its work")

    async def read_until_lost(log: StreamsLog) -> None:
        async with asyncio.timeout(10), reading(log, TOPIC, listener=Failing()) as consumer:
            await redis.call("SET", "log:incoming_messages:owner:group", "another's")
            await consumer.poll(1, 10.0)

    async with opened(valkey) as log:
        with pytest.raises(RuntimeError, match="it cannot stop its work"):
            await read_until_lost(log)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
    ],
)
async def test_open_server_that_could_lose_records_is_refused_with_its_setting(setting: str, value: str) -> None:
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        server = ValkeyServer(Path(folder), options={setting: value})
        server.start()
        try:
            with pytest.raises(StartRefused, match=f"{setting} {value}"):
                async with opened(server.url):
                    pass
        finally:
            server.stop()


async def test_open_server_away_is_unavailable() -> None:
    with pytest.raises(LogUnavailable):
        async with opened("unix:///nowhere.sock"):
            pass


async def test_consumer_server_away_is_unavailable(valkey_server: ValkeyServer) -> None:
    async with opened(valkey_server.url) as log:
        valkey_server.stop()
        with pytest.raises(LogUnavailable):
            async with reading(log, TOPIC):
                pass


def _rewrite(server: ValkeyServer) -> None:
    """Let the server rewrite its file: a stream that is empty by now is then kept by its last id alone."""
    server.execute("BGREWRITEAOF")
    deadline = time.monotonic() + 10
    while b"aof_rewrite_in_progress:1" in server.execute("INFO", "persistence"):
        assert time.monotonic() < deadline, "the rewrite does not end"
        time.sleep(0.01)
