"""A Kafka that is away or hangs: nothing is lost, every wait has an end, and it goes on by itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import structlog
from tests.support.logs import (
    Listener,
    append_until_acknowledged,
    ends,
    poll_until_lost,
    read,
    reading,
    until_ready,
)

from duologue.cluster.kafka import KafkaServer
from duologue.domain.errors import LogUnavailable
from duologue.log.kafka import KafkaLog, open_kafka_log
from duologue.log.kafka_options import KafkaOptions

TOPIC = "incoming_messages"
DEADLINE_SECONDS = 30.0


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
        await until_ready(log)
        async with reading(log, TOPIC) as consumer:
            assert len(await read(consumer, 1)) == 1


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
                await poll_until_lost(consumer)
            kafka.resume()
        async with asyncio.timeout(DEADLINE_SECONDS), reading(log, TOPIC) as consumer:
            assert [record.value for record in await read(consumer, 1)] == [b"v"]
    assert listener.events == ["assigned", "lost"]


async def test_append_more_than_may_wait_is_unavailable_at_once(kafka: KafkaServer, options: KafkaOptions) -> None:
    async with open_kafka_log(replace(options, timeout_seconds=60.0)) as log:
        kafka.pause()
        appends = [asyncio.create_task(log.producer.append(TOPIC, str(n), bytes(100), {})) for n in range(20_100)]
        done, waiting = await asyncio.wait(appends, return_when=asyncio.FIRST_EXCEPTION)
        assert len(waiting) >= 20_000
        assert all("too many appends wait" in str(each.exception()) for each in done)
        kafka.resume()
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert sum(outcome is None for outcome in outcomes) == len(waiting)


async def test_consumer_opened_before_kafka_answers_waits_for_it(kafka: KafkaServer, options: KafkaOptions) -> None:
    """It does not give up with the first look: only when its time is over."""
    options = replace(options, timeout_seconds=20.0)
    kafka.pause()
    async with open_kafka_log(options) as log:
        opening = asyncio.create_task(_open_and_close(log))
        await asyncio.wait({opening}, timeout=2.0)  # longer than one look takes
        assert not opening.done()
        kafka.resume()
        await opening


async def test_consumer_left_while_kafka_is_away_ends_at_once(kafka: KafkaServer, log: KafkaLog) -> None:
    listener = Listener()
    async with reading(log, TOPIC, listener=listener) as consumer:
        await log.producer.append(TOPIC, "key", b"v", {})
        await read(consumer, 1)
        kafka.stop()
        left_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - left_at < 3.0
    assert listener.events == ["assigned", "revoked"]


async def test_consumer_left_while_kafka_hangs_ends_in_time_though_a_commit_is_never_answered(
    kafka: KafkaServer, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duologue.log.kafka_consumer._CLOSE_SECONDS", 2.5)
    listener, refusals = Listener(), []
    with structlog.testing.capture_logs() as logs:
        async with reading(log, TOPIC, listener=listener) as consumer:
            await log.producer.append(TOPIC, "key", b"v", {})
            records = await read(consumer, 1)

            async def commit() -> None:
                try:
                    async with asyncio.timeout(0.9):
                        await consumer.commit(ends(records))
                except TimeoutError as refusal:
                    refusals.append(refusal)

            listener.on_leaving = commit
            kafka.pause()
            left_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - left_at < 4.0
    assert listener.events == ["assigned", "revoked"]
    assert refusals
    assert "log_consumer_left_behind" in [entry["event"] for entry in logs]
    kafka.resume()


async def test_append_after_the_log_is_closed_is_refused(options: KafkaOptions) -> None:
    async with open_kafka_log(options) as log:
        pass
    with pytest.raises(LogUnavailable, match="closed"):
        await log.producer.append(TOPIC, "key", b"v", {})


async def _open_and_close(log: KafkaLog) -> None:
    async with reading(log, TOPIC):
        pass
