"""The figures of ai-consumers in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from duologue.delivery.load import LoadBoard, LoadReport
from duologue.engines.redis import Redis

KEY = "load:{duologue-load}"


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    async with Redis(valkey, name="test", scripts=LoadBoard.scripts) as opened:
        yield opened


def report(consumer: str, wait: float = 1.5) -> LoadReport:
    return LoadReport(
        consumer=consumer,
        partitions=[1, 4],
        waiting=3,
        unread=2,
        slots=8,
        running=8,
        wait_seconds=wait,
        backlog_seconds=wait,
        replies_per_second=4.0,
    )


async def test_figures_of_several_consumers_are_read_the_oldest_first_and_only_the_last_of_each(redis: Redis) -> None:
    board = LoadBoard(redis)
    await board.report(report("b", 9.0))
    await board.report(report("a"))
    await redis.call("HSET", KEY, "b", b"1 " + (await redis.call("HGET", KEY, "b")).split(b" ", 1)[1])
    standings = await board.read()
    assert [standing.report for standing in standings] == [report("b", 9.0), report("a")]
    assert standings[0].written_at == 1
    await redis.call("DEL", KEY)
    await board.report(report("a"))
    await board.report(report("a", 2.0))
    assert [standing.report for standing in await board.read()] == [report("a", 2.0)]


async def test_figures_of_a_consumer_that_is_long_silent_are_forgotten(redis: Redis) -> None:
    board = LoadBoard(redis)
    await redis.call("HSET", KEY, "gone", "1 {}", "newer", "1 [what nobody knows yet]")
    assert await board.read() == []
    await board.report(report("a"))
    assert await redis.call("HKEYS", KEY) == [b"a"]
    assert 0 < await redis.call("PTTL", KEY) <= 60_000
