"""The roster: who announces itself, who is lost, who has left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.support.pipeline import until

from duologue import __version__
from duologue.cluster.valkey import ValkeyServer
from duologue.delivery import roster
from duologue.delivery.roster import LOST_KEPT, Announced, Announcement, Present, Roster
from duologue.engines.redis import Redis

_KEY = "roster:{duologue}"
_STARTED_AT = 1_767_614_400_000


class Process:
    """A process's announcement, and the checks that fail in it."""

    def __init__(self, redis: Redis, server_id: str, *roles: str, **options: Any) -> None:
        self.failing: list[str] = []
        self.asked = 0
        self.counts: dict[str, int] = {}
        self.announcement = Announcement(
            redis,
            server_id=server_id,
            roles=dict.fromkeys(roles, lambda: self.counts),
            failing=self._failing,
            clock=lambda: _STARTED_AT,
            **options,
        )

    async def _failing(self) -> Sequence[str]:
        self.asked += 1
        return list(self.failing)


@asynccontextmanager
async def _running(process: Process) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(process.announcement.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    async with Redis(valkey, name="roster") as opened:
        yield opened


async def _states(redis: Redis) -> Mapping[str, str]:
    return {f"{each.announced.role}/{each.announced.server_id}": each.state for each in await Roster(redis).present()}


async def _become(redis: Redis, states: Mapping[str, str]) -> None:
    async def reached() -> bool:
        return await _states(redis) == states

    await until(reached)


async def _age(redis: Redis, milliseconds: int) -> None:
    """Let everything in the roster be as if it had been written that much earlier."""
    entries = await redis.call("HGETALL", _KEY)
    for name, entry in zip(entries[::2], entries[1::2], strict=True):
        seen, _, text = entry.partition(b" ")
        await redis.call("HSET", _KEY, name, b"%d %s" % (int(seen) - milliseconds, text))


async def test_process_announces_each_role_with_its_state_and_counts(redis: Redis) -> None:
    process = Process(redis, "all-1", "api", "websocket-server")
    process.counts = {"connections": 12, "users": 9}
    async with _running(process):
        await _become(redis, {"api/all-1": "ready", "websocket-server/all-1": "ready"})
        first, _ = await Roster(redis).present()
    assert first.announced == Announced(
        role="api",
        server_id="all-1",
        version=__version__,
        started_at=_STARTED_AT,
        state="ready",
        counts={"connections": 12, "users": 9},
        failing=[],
    )
    assert 0 <= first.seen_ms_ago < 5000


async def test_process_that_is_not_ready_names_the_checks_and_soon_says_when_it_is(redis: Redis) -> None:
    process = Process(redis, "relay-1", "message-relay")
    process.failing = ["store", "log"]
    async with _running(process):
        await _become(redis, {"message-relay/relay-1": "not_ready"})
        (found,) = await Roster(redis).present()
        assert found.announced.failing == ["store", "log"]
        process.failing = []
        await _become(redis, {"message-relay/relay-1": "ready"})


async def test_process_that_begins_to_drain_says_so_at_once_and_is_gone_when_it_ends(redis: Redis) -> None:
    process = Process(redis, "chat-1", "websocket-server", heartbeat_seconds=60)
    async with _running(process) as task:
        await _become(redis, {"websocket-server/chat-1": "ready"})
        process.announcement.begin_drain()
        await _become(redis, {"websocket-server/chat-1": "draining"})
        await process.announcement.drain(5.0)
        async with asyncio.timeout(5):
            await task
        assert await _states(redis) == {}


async def test_process_that_is_killed_is_lost_after_a_while_and_back_when_it_starts_again(redis: Redis) -> None:
    async with _running(Process(redis, "ai-1", "ai-consumer")):
        await _become(redis, {"ai-consumer/ai-1": "ready"})
    await _age(redis, 14_000)
    assert await _states(redis) == {"ai-consumer/ai-1": "ready"}
    await _age(redis, 2_000)
    assert await _states(redis) == {"ai-consumer/ai-1": "lost"}
    async with _running(Process(redis, "ai-1", "ai-consumer")):
        await _become(redis, {"ai-consumer/ai-1": "ready"})


async def test_lost_process_is_forgotten_after_an_hour(redis: Redis) -> None:
    async with _running(Process(redis, "ai-1", "ai-consumer")):
        await _become(redis, {"ai-consumer/ai-1": "ready"})
    await _age(redis, 3_590_000)
    async with _running(Process(redis, "ai-2", "ai-consumer", heartbeat_seconds=0.02)):
        await _become(redis, {"ai-consumer/ai-1": "lost", "ai-consumer/ai-2": "ready"})
        await _age(redis, 11_000)
        await _become(redis, {"ai-consumer/ai-2": "ready"})


async def test_roster_of_nobody_is_forgotten(redis: Redis) -> None:
    async with _running(Process(redis, "ai-1", "ai-consumer")):
        await _become(redis, {"ai-consumer/ai-1": "ready"})
    assert 3_500_000 < await redis.call("PTTL", _KEY) <= 3_600_000


async def test_crashes_under_ever_new_names_do_not_fill_the_roster(redis: Redis) -> None:
    seconds, _ = await redis.call("TIME")
    entries: list[str] = []
    for number in range(LOST_KEPT * 3):
        said = {"role": "api", "server_id": f"crash-{number}", "version": "1", "started_at": 1, "state": "not_ready"}
        entries += [f"api/crash-{number}", f"{int(seconds) * 1000 - 20_000 - number} {json.dumps(said)}"]
    await redis.call("HSET", _KEY, *entries)
    async with _running(Process(redis, "ai-1", "ai-consumer")):
        newest = {f"api/crash-{number}": "lost" for number in range(LOST_KEPT)}
        await _become(redis, newest | {"ai-consumer/ai-1": "ready"})


async def test_entry_of_a_form_that_is_not_known_is_passed_over(redis: Redis) -> None:
    async with _running(Process(redis, "ai-1", "ai-consumer")):
        await _become(redis, {"ai-consumer/ai-1": "ready"})
        for name, entry in {"x": b"", "y": b"12", "z": b"yesterday {}", "w": b'1 {"role":7}'}.items():
            await redis.call("HSET", _KEY, name, entry)
        newer = {"role": "voice", "server_id": "v-1", "version": "9", "started_at": 1, "state": "ready", "more": [1]}
        await redis.call("HSET", _KEY, "voice/v-1", b"9999999999999 " + msgspec.json.encode(newer))
        assert await _states(redis) == {"ai-consumer/ai-1": "ready", "voice/v-1": "ready"}


async def test_announcement_goes_on_when_redis_is_back(valkey_server: ValkeyServer) -> None:
    async with Redis(valkey_server.url, name="roster", timeout_seconds=1.0) as redis:
        process = Process(redis, "ai-1", "ai-consumer", heartbeat_seconds=0.02)
        async with _running(process) as task:
            await _become(redis, {"ai-consumer/ai-1": "ready"})
            valkey_server.kill()
            await until(lambda: not redis.connected.is_set())
            asked = process.asked
            await until(lambda: process.asked > asked + 2)
            assert not task.done()
            valkey_server.start()
            await redis.connected.wait()
            await redis.call("DEL", _KEY)
            await _become(redis, {"ai-consumer/ai-1": "ready"})


async def test_announcement_without_redis_ends_when_it_is_told_to(valkey_server: ValkeyServer) -> None:
    async with Redis(valkey_server.url, name="roster", timeout_seconds=1.0) as redis:
        process = Process(redis, "ai-1", "ai-consumer")
        async with _running(process) as task:
            await _become(redis, {"ai-consumer/ai-1": "ready"})
            valkey_server.kill()
            await until(lambda: not redis.connected.is_set())
            await process.announcement.drain(5.0)
            async with asyncio.timeout(5):
                await task


async def test_broken_counts_do_not_end_the_announcement(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(redis, "ai-1", "ai-consumer", heartbeat_seconds=0.02)
    monkeypatch.setattr(process, "counts", {"broken": object()})
    async with _running(process) as task:
        await until(lambda: process.asked > 2)
        assert not task.done()
        monkeypatch.setattr(process, "counts", {})
        await _become(redis, {"ai-consumer/ai-1": "ready"})


def test_silence_decides_what_counts_as_lost() -> None:
    said = Announced(role="api", server_id="a", version="1", started_at=1, state="draining")
    assert Present(announced=said, seen_ms_ago=roster.LOST_MS).state == "draining"
    assert Present(announced=said, seen_ms_ago=roster.LOST_MS + 1).state == "lost"
