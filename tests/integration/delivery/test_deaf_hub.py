"""A subscription that accepts and never delivers: the hub does not hear itself, and sends its sockets away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from tests.integration.delivery.support import ALICE, RecordingSocket, echo, eventually, open_streams
from tests.support.tcp_proxy import Link, TcpProxy

from duologue.cluster.valkey import ValkeyServer
from duologue.delivery.hub import Hub
from duologue.delivery.stream import UserStreams
from duologue.domain.errors import RedisUnavailable
from duologue.engines.redis import Redis

_PROBE_SECONDS = 0.1
_TIMEOUT_SECONDS = 0.3
_AWAY_SECONDS = 1.0
"""After which an unanswered connection is given up."""


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def proxy(valkey: str, stack: AsyncExitStack) -> TcpProxy:
    """In front of a Valkey that is well."""
    return await stack.enter_async_context(TcpProxy(valkey.removeprefix("unix://")).listening())


class Node:
    """A process behind the proxy, with a hub that probes often."""

    def __init__(self, hub: Hub, streams: UserStreams, redis: Redis) -> None:
        self.hub = hub
        self.streams = streams
        self.redis = redis

    async def join(self, last_event_id: str | None = None) -> RecordingSocket:
        socket = RecordingSocket()
        await self.hub.attach(ALICE, socket, last_event_id, socket.greet)
        return socket


async def open_node(stack: AsyncExitStack, proxy: TcpProxy) -> Node:
    url = f"redis://127.0.0.1:{proxy.port}/0"
    streams, redis = await stack.enter_async_context(open_streams(url, timeout_seconds=_AWAY_SECONDS))
    hub = Hub(
        url,
        streams,
        check_seconds=3600,
        probe_seconds=_PROBE_SECONDS,
        probe_timeout_seconds=_TIMEOUT_SECONDS,
        timeout_seconds=_AWAY_SECONDS,
    )
    await stack.enter_async_context(hub)
    return Node(hub, streams, redis)


async def _until_probed(node: Node, times: int = 2) -> None:
    """Return once the hub has heard itself so many times more."""
    heard = 0
    hear = node.hub._probe.hear

    def count(word: bytes) -> None:
        nonlocal heard
        heard += 1
        hear(word)

    node.hub._probe.hear = count  # type: ignore[method-assign]
    await eventually(lambda: heard >= times)


async def test_subscription_that_delivers_no_more_is_noticed_and_its_sockets_lose_nothing(
    proxy: TcpProxy, stack: AsyncExitStack
) -> None:
    deaf, other = await open_node(stack, proxy), await open_node(stack, proxy)
    socket = await deaf.join()
    await other.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: socket.messages() == ["a"])
    (link, _) = proxy.subscriptions()
    began = time.monotonic()
    link.deaf = True
    await other.streams.apply(ALICE, [echo("b")])

    await socket.until(lambda: socket.lost)
    assert time.monotonic() - began < _PROBE_SECONDS + 2 * _TIMEOUT_SECONDS + 1
    assert (deaf.hub.deaf, deaf.hub.ready, other.hub.ready) == (True, False, True)
    with pytest.raises(RedisUnavailable):
        await deaf.join()
    moved = RecordingSocket()
    await other.hub.attach(ALICE, moved, socket.events[-1].event_id, moved.greet)
    assert moved.messages() == ["b"]
    assert moved.frames[0]["recovered"] is True

    await eventually(lambda: deaf.hub.ready)
    back = await deaf.join(moved.events[-1].event_id)
    await other.streams.apply(ALICE, [echo("c")])
    await back.until(lambda: back.messages() == ["c"])


async def test_server_is_not_ready_until_it_hears_itself_again(proxy: TcpProxy, stack: AsyncExitStack) -> None:
    node = await open_node(stack, proxy)
    await node.join()
    proxy.deaf_to = Link.subscribes  # new connections too
    await eventually(lambda: node.hub.deaf)
    await node.redis.call("PING")
    with pytest.raises(RedisUnavailable):
        await node.join()

    proxy.deaf_to = lambda _: False
    await eventually(lambda: node.hub.ready)
    await node.join()


async def test_sockets_of_a_dead_subscription_are_closed_one_after_the_other(
    proxy: TcpProxy, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, proxy)
    sockets = [await node.join() for _ in range(10)]
    proxy.subscriptions()[0].deaf = True
    await sockets[0].until(lambda: sockets[0].lost)
    assert not sockets[-1].lost
    await sockets[-1].until(lambda: sockets[-1].lost)
    assert all(socket.lost for socket in sockets)


async def test_one_late_probe_sends_nobody_away(proxy: TcpProxy, stack: AsyncExitStack) -> None:
    """As it is after the process itself was stopped for a while: its time is over before it has looked."""
    node = await open_node(stack, proxy)
    socket = await node.join()
    time.sleep(2 * _TIMEOUT_SECONDS)  # noqa: ASYNC251  # nothing in this process goes on meanwhile
    await _until_probed(node)
    assert (node.hub.ready, socket.lost) == (True, False)


async def test_redis_that_answers_nothing_at_all_keeps_the_sockets(proxy: TcpProxy, stack: AsyncExitStack) -> None:
    node = await open_node(stack, proxy)
    socket = await node.join()
    proxy.deaf_to = lambda _: True
    with pytest.raises(RedisUnavailable):
        await node.redis.call("PING")
    with pytest.raises(RedisUnavailable):
        await node.streams.apply(ALICE, [echo("a")])
    proxy.deaf_to = lambda _: False
    for link in list(proxy.links):
        link.deaf = True  # what was open stays silent, as it does when a machine has lost its power

    await eventually(lambda: node.streams.connected)
    await node.streams.apply(ALICE, [echo("b")])
    await socket.until(lambda: "b" in socket.messages())
    assert not socket.lost


async def test_redis_restarted_keeps_the_sockets(valkey_server: ValkeyServer, stack: AsyncExitStack) -> None:
    target = valkey_server.url.removeprefix("unix://")
    node = await open_node(stack, await stack.enter_async_context(TcpProxy(target).listening()))
    socket = await node.join()
    await asyncio.to_thread(valkey_server.restart)
    await eventually(lambda: node.streams.connected)
    await _until_probed(node)
    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: socket.messages() == ["a"])
    assert not socket.lost


async def test_subscription_forgotten_by_redis_itself_is_noticed(proxy: TcpProxy, stack: AsyncExitStack) -> None:
    node = await open_node(stack, proxy)
    socket = await node.join()
    await node.hub._subscription.unsubscribe(node.hub._probe.channel)
    await socket.until(lambda: socket.lost)
    await eventually(lambda: node.hub.ready)
