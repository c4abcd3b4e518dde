"""What the hub does by itself, without anything that happens to it: its check, and the cursor."""

from __future__ import annotations

import asyncio

from tests.integration.delivery.support import ALICE, RecordingSocket, echo, open_streams

from duologue.delivery.hub import Hub
from duologue.delivery.names import names_of


async def test_publication_that_never_arrived_is_fetched_by_the_hubs_own_check(valkey: str) -> None:
    async with open_streams(valkey) as (streams, _), Hub(valkey, streams, check_seconds=0.05) as hub:
        socket = RecordingSocket()
        await hub.attach(ALICE, socket, None, socket.greet)
        channel = names_of(ALICE).channel
        await hub._subscription.unsubscribe(channel)
        await streams.apply(ALICE, [echo("lost")])
        await hub._subscription.subscribe(channel)
        await socket.until(lambda: socket.messages() == ["lost"])


async def test_cursor_moves_by_itself_once_its_time_has_come(valkey: str) -> None:
    async with open_streams(valkey) as (streams, redis), Hub(valkey, streams, cursor_delay_seconds=0.0) as hub:
        socket = RecordingSocket()
        await hub.attach(ALICE, socket, None, socket.greet)
        await streams.apply(ALICE, [echo("a")])
        await socket.until(lambda: socket.messages() == ["a"])
        hub.written(socket, socket.events[0])
        async with asyncio.timeout(10):
            while await redis.call("HGET", names_of(ALICE).state, "cursor") != b"1":  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0.02)


async def test_hub_that_closes_lets_the_cursor_pass_what_clients_had_closed_in_order(valkey: str) -> None:
    async with open_streams(valkey) as (streams, redis):
        async with Hub(valkey, streams) as hub:
            socket = RecordingSocket()
            await hub.attach(ALICE, socket, None, socket.greet)
            await streams.apply(ALICE, [echo("a")])
            await socket.until(lambda: socket.messages() == ["a"])
            hub.written(socket, socket.events[0])
            await hub.detach(socket, clean=True)
        assert await redis.call("HGET", names_of(ALICE).state, "cursor") == b"1"


async def test_redis_that_counts_from_less_than_a_socket_has_seen_is_noticed_by_the_check(valkey: str) -> None:
    """As one that was restored from an older copy does: its publications would look like repeats."""
    async with open_streams(valkey, durable=True) as (streams, redis), Hub(valkey, streams, check_seconds=3600) as hub:
        socket = RecordingSocket()
        await hub.attach(ALICE, socket, None, socket.greet)
        await streams.apply(ALICE, [echo("a")])
        await socket.until(lambda: socket.messages() == ["a"])
        await redis.call("HINCRBY", names_of(ALICE).state, "number", -1_000_000)
        await hub.check()
        await streams.apply(ALICE, [echo("b")])
        await socket.until(lambda: socket.messages() == ["a", "b"])
