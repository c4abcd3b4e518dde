"""A whole system killed with SIGKILL and started again: nothing lost, nothing doubled, nothing stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.crowd import crowd
from tests.support.model_server import ModelServer
from tests.support.witness import Witness

from duologue.bench.processes import descendants
from duologue.bench.system import EmbeddedSystem, System

_USERS = 12
_MESSAGES = 3
_START_SECONDS = 60.0


def _send_all(users: Sequence[Witness]) -> None:
    for _ in range(_MESSAGES):
        for user in users:
            user.say()


async def test_system_killed_in_the_middle_of_replies_answers_each_message_once(
    system: System, model_server: ModelServer, tmp_path: Path
) -> None:
    await model_server.configure(tokens=40, tps=40, stamp=True, echo=True)
    async with crowd(system.url, tmp_path, _USERS) as together:
        users = together.users
        _send_all(users)
        await model_server.until(lambda stats: stats["in_flight"] >= _USERS and stats["pieces"] > 100)
        await system.kill()
        await model_server.configure(tps=400)
        await system.start()
        await together.assert_kept(model_server)
        highest = [max(user.attempts.values()) for user in users]
    assert max(highest) >= 2, "no reply was taken over: the kill came too late to show anything"
    stats = await model_server.stats()
    assert max(stats["contents"].values()) <= 2, "a message was asked more often than it was interrupted"


async def test_system_killed_right_after_acks_loses_no_message(
    system: System, model_server: ModelServer, tmp_path: Path
) -> None:
    await model_server.configure(echo=True, stamp=True)
    async with crowd(system.url, tmp_path, _USERS) as together:
        users = together.users
        _send_all(users)
        first = users[0]
        await first.connection.until(lambda: bool(first.acknowledged))
        await system.kill()
        await system.start()
        await together.assert_kept(model_server)


async def test_client_that_connects_while_the_system_starts_waits_and_is_served(embedded: EmbeddedSystem) -> None:
    await embedded.kill()
    await embedded.spawn()
    reader, writer = await _connected(embedded.port)
    assert not descendants(embedded.pid), "it let nobody in before its engines ran"
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(_START_SECONDS):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await embedded.until_ready()


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(_START_SECONDS):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.005)


@pytest.mark.timeout(240)  # three starts of all processes
async def test_system_killed_again_and_again_still_answers_each_message_once(
    system: System, model_server: ModelServer, tmp_path: Path
) -> None:
    await model_server.configure(tokens=20, tps=4, stamp=True, echo=True)  # slower than any start
    async with crowd(system.url, tmp_path, _USERS) as together:
        users = together.users
        _send_all(users)
        asked = 0
        for _ in range(3):
            stats = await model_server.until(
                lambda stats, asked=asked: stats["requests"] > asked,  # type: ignore[misc]
                seconds=60.0,  # the group's session of those who were killed has to end
            )
            asked = stats["requests"]
            await system.kill()
            await system.start()
        await model_server.configure(tps=400)
        await together.assert_kept(model_server)


async def test_embedded_system_stopped_in_order_tells_its_users_what_it_finishes(
    embedded: EmbeddedSystem, model_server: ModelServer, tmp_path: Path
) -> None:
    """Its roles stop one after the other, sockets last. Of many processes each stops for itself."""
    await model_server.configure(tokens=20, tps=40, stamp=True, echo=True)
    async with crowd(embedded.url, tmp_path, _USERS) as together:
        users = together.users
        _send_all(users)
        await asyncio.gather(*(user.until_echoed(_MESSAGES) for user in users))
        assert await embedded.terminate() == 0
        assert sum(len(user.outcomes) for user in users) == _USERS * _MESSAGES


async def test_system_stopped_in_order_finishes_what_it_accepted(
    system: System, model_server: ModelServer, tmp_path: Path
) -> None:
    await model_server.configure(tokens=20, tps=40, stamp=True, echo=True)
    async with crowd(system.url, tmp_path, _USERS) as together:
        users = together.users
        _send_all(users)
        await asyncio.gather(*(user.until_echoed(_MESSAGES) for user in users))
        assert await system.terminate() == 0
        assert (await model_server.stats())["completed"] == _USERS * _MESSAGES
        await system.start()
        await together.assert_kept(model_server)
        assert {attempt for user in users for attempt in user.attempts.values()} == {1}
