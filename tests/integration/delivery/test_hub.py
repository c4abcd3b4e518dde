"""The hub: what each socket is sent, in order, with nothing lost and nothing twice, whatever happens to Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from tests.integration.delivery.support import (
    ALICE,
    BOB,
    RecordingSocket,
    delta,
    echo,
    eventually,
    open_streams,
    response,
)

from duologue.cluster.valkey import ValkeyServer
from duologue.delivery.hub import Hub
from duologue.delivery.names import EventPosition, names_of
from duologue.delivery.stream import AttachReply, UserStreams
from duologue.domain.errors import RedisUnavailable
from duologue.domain.ids import UserKey
from duologue.engines.redis import Redis


class Node:
    """A process with a hub, and a socket for each `join`."""

    def __init__(self, hub: Hub, streams: UserStreams, redis: Redis) -> None:
        self.hub = hub
        self.streams = streams
        self.redis = redis

    async def join(self, last_event_id: str | None = None, user: UserKey = ALICE) -> RecordingSocket:
        socket = RecordingSocket()
        await self.hub.attach(user, socket, last_event_id, socket.greet)
        return socket


class Clock:
    """Seconds, set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def open_node(
    stack: AsyncExitStack, url: str, *, durable: bool = False, timeout_seconds: float = 5.0, clock: Clock | None = None
) -> Node:
    """Open a hub whose checks and probes run only when the test calls them."""
    streams, redis = await stack.enter_async_context(
        open_streams(url, durable=durable, timeout_seconds=timeout_seconds)
    )
    hub = Hub(
        url,
        streams,
        check_seconds=3600,
        probe_seconds=3600,
        probe_timeout_seconds=0.5,
        timeout_seconds=timeout_seconds,
        clock=clock or Clock(),
    )
    await stack.enter_async_context(hub)
    return Node(hub, streams, redis)


async def _stream_reply(streams: UserStreams, message: str, pieces: int, user: UserKey = ALICE) -> None:
    """Write a reply of numbered pieces, from its opening to its outcome."""
    await streams.open_live(user, message, "c", 1, None)
    for seq in range(1, pieces + 1):
        await streams.append_live(user, message, 1, seq, seq, f"{seq} ", delta(message, seq, f"{seq} "))
    await streams.apply(user, [response(message)])


def shown(socket: RecordingSocket, message: str) -> Iterator[str]:
    """Return the text of a message as it grew on a socket; fails on a gap, a repeat or a piece after the end."""
    text, seq, ended = "", 0, False
    for frame in socket.frames:
        if frame.get("message_id") != message:
            continue
        match frame["type"]:
            case "snapshot":
                assert not ended
                text, seq = frame["content"], frame["seq"]
            case "delta":
                assert not ended
                assert frame["seq"] == seq + 1
                text, seq = text + frame["content"], frame["seq"]
            case "response":
                ended = True
        yield text


def assert_gapless(socket: RecordingSocket) -> None:
    """Durable frames of one epoch follow one another by one."""
    for before, after in zip(socket.events, socket.events[1:], strict=False):
        assert after == EventPosition(before.epoch, before.number + 1)


# Attaching


async def test_attach_sends_greeting_then_missed_then_snapshots_then_live_frames(
    valkey: str, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey)
    await node.streams.apply(ALICE, [echo("a"), echo("b")])
    await node.streams.open_live(ALICE, "b", "c", 1, None)
    await node.streams.append_live(ALICE, "b", 1, 1, 1, "He", delta("b", 1, "He"))

    socket = await node.join()
    await node.streams.append_live(ALICE, "b", 1, 2, 2, "llo", delta("b", 2, "llo"))
    await node.streams.apply(ALICE, [response("b")])
    await socket.until(lambda: "response" in socket.types())

    assert socket.types() == ["connection", "echo", "echo", "snapshot", "delta", "typing", "response"]
    assert socket.deltas == 1
    assert list(shown(socket, "b"))[-1] == "Hello"


async def test_attach_again_after_a_while_replays_what_was_missed_only(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    first = await node.join()
    await node.streams.apply(ALICE, [echo("a")])
    await first.until(lambda: first.messages() == ["a"])
    await node.hub.detach(first)
    await node.streams.apply(ALICE, [echo("b"), echo("c")])

    second = await node.join(first.events[-1].event_id)

    assert second.messages() == ["b", "c"]
    assert second.frames[0] == {"type": "connection", "recovered": True, "event_id": first.events[-1].event_id}


async def test_attach_behind_what_is_lost_says_so_and_replays_all(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    await node.streams.apply(ALICE, [echo("a")])

    socket = await node.join("elsewhere:7")

    assert socket.frames[0]["recovered"] is False
    assert socket.messages() == ["a"]


async def test_attach_while_redis_is_away_raises_and_leaves_nothing(
    valkey_server: ValkeyServer, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey_server.url)
    valkey_server.stop()
    await eventually(lambda: not node.streams.connected)

    with pytest.raises(RedisUnavailable):
        await node.join()

    assert node.hub.connections(ALICE) == 0
    valkey_server.start()


async def test_attach_with_much_missed_sends_it_in_parts_while_more_comes(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    await node.streams.apply(ALICE, [echo(f"m{number}", size=50_000) for number in range(20)])
    socket = RecordingSocket()
    socket.room.clear()

    attaching = asyncio.create_task(node.hub.attach(ALICE, socket, None, socket.greet))
    await socket.until(lambda: socket.drains == 1)
    sent = len(socket.messages())
    await node.streams.apply(ALICE, [echo(f"m{number}") for number in range(20, 30)])
    socket.room.set()
    await attaching
    await node.streams.apply(ALICE, [echo("m30")])
    await socket.until(lambda: "m30" in socket.messages())

    assert 0 < sent < 20
    assert socket.messages() == [f"m{number}" for number in range(31)]
    assert socket.types().count("connection") == 1
    assert_gapless(socket)


async def test_publication_between_the_cut_and_the_end_of_attaching_is_not_lost(
    valkey: str, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await open_node(stack, valkey)
    attach = node.streams.attach

    async def then_one_more(user: UserKey, last_event_id: str | None) -> AttachReply:
        reply = await attach(user, last_event_id)
        await node.streams.apply(user, [echo("between")])
        return reply

    monkeypatch.setattr(node.streams, "attach", then_one_more)
    socket = await node.join()
    await socket.until(lambda: socket.messages() == ["between"])  # nothing later tells of it


async def test_attach_in_the_middle_of_replies_loses_and_doubles_nothing(valkey: str, stack: AsyncExitStack) -> None:
    dice = random.Random(7)  # seeded: the interleaving is the same each time
    writer, _ = await stack.enter_async_context(open_streams(valkey))
    nodes = [await open_node(stack, valkey) for _ in range(2)]
    messages = [f"m{number}" for number in range(12)]
    sockets: list[RecordingSocket] = []

    async def write() -> None:
        for message in messages:
            await _stream_reply(writer, message, pieces=dice.randint(1, 40))

    async def come_and_go() -> None:
        while not writing.done():
            node = dice.choice(nodes)
            known = [socket.events[-1].event_id for socket in sockets if socket.events]
            sockets.append(await node.join(dice.choice([*known, None])))
            if len(sockets) % 3 == 0:
                await node.hub.resume(sockets[-1], dice.choice([*known, "unreadable"]))
            for _ in range(dice.randint(0, 5)):
                await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    await asyncio.gather(writing, come_and_go(), come_and_go())

    assert len(sockets) > 10
    for socket in sockets:
        await socket.until(lambda socket=socket: _reached(socket) == len(messages))  # type: ignore[misc]
        starts = [index for index, frame in enumerate(socket.frames) if frame["type"] == "connection"]
        _assert_whole(socket, messages, starts[-1])


def _reached(socket: RecordingSocket) -> int:
    """Return the number of the last durable frame that a socket had, or said that it had before."""
    *_, last = [frame["event_id"] for frame in socket.frames if "event_id" in frame]
    return int(last.partition(":")[2])


def _assert_whole(socket: RecordingSocket, messages: list[str], start: int) -> None:
    """From its last greeting on, a socket had every message once, each text without a gap."""
    tail = RecordingSocket()
    tail.frames = socket.frames[start:]
    behind = int(tail.frames[0]["event_id"].partition(":")[2])
    assert tail.messages() == messages[behind:]
    for message in messages:
        list(shown(tail, message))


# Fan-out


async def test_two_nodes_and_several_sockets_of_a_user_all_hear_everything(valkey: str, stack: AsyncExitStack) -> None:
    nodes = [await open_node(stack, valkey) for _ in range(2)]
    sockets = [await node.join() for node in nodes for _ in range(2)]
    stranger = await nodes[0].join(user=BOB)

    await _stream_reply(nodes[0].streams, "m", pieces=20)

    for socket in sockets:
        await socket.until(lambda socket=socket: "response" in socket.types())  # type: ignore[misc]
        assert list(shown(socket, "m"))[-1] == "".join(f"{seq} " for seq in range(1, 21))
    assert stranger.types() == ["connection"]
    assert nodes[0].hub.connections(ALICE) == 2
    assert nodes[0].hub.oldest(ALICE) is sockets[0]


async def test_frame_of_a_socket_reaches_all_others_and_leaves_no_gap(valkey: str, stack: AsyncExitStack) -> None:
    nodes = [await open_node(stack, valkey), await open_node(stack, valkey)]
    sender, neighbour, far = [await node.join() for node in (nodes[0], nodes[0], nodes[1])]
    for _ in range(2):
        await nodes[0].streams.publish_from(ALICE, sender.session_id, b'{"type":"typing"}')
    await nodes[1].streams.apply(ALICE, [echo("a")])
    for socket in (sender, neighbour, far):
        await socket.until(lambda socket=socket: "echo" in socket.types())  # type: ignore[misc]

    assert sender.types() == ["connection", "echo"]  # not greeted again: nothing was missing
    assert neighbour.types() == far.types() == ["connection", "typing", "typing", "echo"]


async def test_revocation_reaches_every_socket_of_the_user_on_every_node(valkey: str, stack: AsyncExitStack) -> None:
    nodes = [await open_node(stack, valkey) for _ in range(2)]
    sockets = [await node.join() for node in nodes]
    stranger = await nodes[0].join(user=BOB)

    await nodes[0].streams.revoke(ALICE)

    for socket in sockets:
        await socket.until(lambda socket=socket: socket.was_revoked)  # type: ignore[misc]
    assert not stranger.was_revoked


async def test_foreign_publication_on_a_channel_is_ignored(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()

    await node.redis.call("PUBLISH", "user:alice", "garbage")
    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: socket.messages() == ["a"])


async def test_resume_sends_greeting_missed_and_snapshots_again(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    await node.streams.apply(ALICE, [echo("a"), echo("b")])
    await node.streams.open_live(ALICE, "b", "c", 1, None)
    await socket.until(lambda: socket.types()[-1] == "typing")

    await node.hub.resume(socket, socket.events[0].event_id)
    await socket.until(lambda: socket.types()[-1] == "snapshot")

    assert socket.types()[-3:] == ["connection", "echo", "snapshot"]
    assert socket.messages() == ["a", "b", "b"]


async def test_churn_of_sockets_ends_in_the_right_subscriptions(valkey: str, stack: AsyncExitStack) -> None:
    dice = random.Random(3)  # seeded: the interleaving is the same each time
    node = await open_node(stack, valkey)

    async def come_and_go(user: UserKey) -> None:
        for _ in range(60):
            socket = RecordingSocket()
            task = asyncio.create_task(node.hub.attach(user, socket, None, socket.greet))
            for _ in range(dice.randint(0, 12)):
                await asyncio.sleep(0)
            if dice.random() < 0.3:
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await node.hub.detach(socket)

    await asyncio.gather(*(come_and_go(ALICE) for _ in range(5)), *(come_and_go(BOB) for _ in range(2)))

    channels = [names_of(user).channel for user in (ALICE, BOB)]
    counts = await node.redis.call("PUBSUB", "NUMSUB", *channels)
    assert counts[1::2] == [0, 0]
    socket = await node.join()
    assert (await node.redis.call("PUBSUB", "NUMSUB", *channels))[1::2] == [1, 0]
    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: socket.messages() == ["a"])


async def test_socket_that_joins_while_another_leaves_unconfirmed_is_subscribed(
    valkey_server: ValkeyServer, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey_server.url)
    leaving, joining = RecordingSocket(), RecordingSocket()
    valkey_server.pause()  # so that no SUBSCRIBE is confirmed yet
    first = asyncio.create_task(node.hub.attach(ALICE, leaving, None, leaving.greet))
    await asyncio.sleep(0)
    gone = asyncio.create_task(node.hub.detach(leaving))
    await asyncio.sleep(0)
    second = asyncio.create_task(node.hub.attach(ALICE, joining, None, joining.greet))
    await asyncio.sleep(0)
    valkey_server.resume()
    await asyncio.gather(first, gone, second)

    await node.streams.apply(ALICE, [echo("a")])
    await joining.until(lambda: joining.messages() == ["a"])


# Redis lost and found


async def test_subscription_killed_loses_nothing(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    writer, _ = await stack.enter_async_context(open_streams(valkey))
    sockets = [await node.join() for _ in range(3)]
    idle = await node.join(user=BOB)

    writing = asyncio.create_task(_stream_reply(writer, "m", pieces=300))
    await sockets[0].until(lambda: sockets[0].deltas > 10)
    await node.redis.call("CLIENT", "KILL", "TYPE", "pubsub")
    await writing
    await writer.apply(BOB, [echo("b")])

    for socket in sockets:
        await socket.until(lambda socket=socket: "response" in socket.types())  # type: ignore[misc]
        list(shown(socket, "m"))
        assert socket.types().count("connection") == 1
        assert socket.messages() == ["m"]
    await idle.until(lambda: idle.messages() == ["b"])


async def test_last_publication_that_a_killed_subscription_missed_is_fetched(
    valkey: str, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey)
    sockets = [await node.join(), await node.join(user=BOB)]

    killing = node.redis.call("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.gather(*(node.streams.apply(user, [echo("a")]) for user in (ALICE, BOB)))
    await killing

    for socket in sockets:
        await socket.until(lambda socket=socket: socket.messages() == ["a"])  # type: ignore[misc]


async def test_publication_that_never_arrived_is_fetched_at_the_next_one(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    await _lose_publication(node, "lost")

    await node.streams.apply(ALICE, [echo("next")])
    await socket.until(lambda: len(socket.messages()) == 2)

    assert socket.messages() == ["lost", "next"]
    assert socket.types().count("connection") == 1


async def test_publication_that_never_arrived_is_fetched_by_the_check(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    await _lose_publication(node, "lost")

    await node.hub.check()
    await socket.until(lambda: socket.messages() == ["lost"])


async def test_channel_that_redis_has_forgotten_is_subscribed_again_by_the_check(
    valkey: str, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    await node.hub._subscription.unsubscribe(names_of(ALICE).channel)
    await node.streams.apply(ALICE, [echo("lost")])

    await node.hub.check()
    await socket.until(lambda: socket.messages() == ["lost"])
    await node.streams.apply(ALICE, [echo("heard")])
    await socket.until(lambda: socket.messages() == ["lost", "heard"])


async def _lose_publication(node: Node, message: str) -> None:
    """Apply a frame whose publication the hub does not hear."""
    channel = names_of(ALICE).channel
    await node.hub._subscription.unsubscribe(channel)
    await node.streams.apply(ALICE, [echo(message)])
    await node.hub._subscription.subscribe(channel)


async def test_check_while_all_is_well_attaches_nobody_again(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    writing = asyncio.create_task(_stream_reply(node.streams, "m", pieces=200))

    while not writing.done():
        await node.hub.check()
    await socket.until(lambda: "response" in socket.types())

    assert "snapshot" not in socket.types()
    assert node.hub.ready


@pytest.mark.parametrize("found_by", ["publication", "check"])
async def test_flushed_redis_gives_a_new_epoch_and_the_sockets_go_on(
    valkey: str, stack: AsyncExitStack, found_by: str
) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: socket.messages() == ["a"])
    await node.redis.call("FLUSHALL")

    if found_by == "check":
        await node.hub.check()
        await socket.until(lambda: socket.types()[-1] == "connection")
    await node.streams.apply(ALICE, [echo("b")])
    await socket.until(lambda: socket.messages() == ["a", "b"])

    assert socket.events[1].epoch != socket.events[0].epoch
    assert [frame["recovered"] for frame in socket.frames if frame["type"] == "connection"] == [True, False]


@pytest.mark.parametrize("durable", [True, False])
async def test_restarted_redis_finds_its_sockets_attached_again(
    valkey_server: ValkeyServer, stack: AsyncExitStack, durable: bool
) -> None:
    node = await open_node(stack, valkey_server.url, durable=durable)
    sockets = [await node.join() for _ in range(2)]
    await node.streams.apply(ALICE, [echo("a")])
    await sockets[0].until(lambda: sockets[0].messages() == ["a"])

    before = node.redis.run_id
    valkey_server.restart()
    await eventually(lambda: node.streams.connected and node.redis.run_id != before)
    await node.streams.apply(ALICE, [echo("b")])

    for socket in sockets:
        await socket.until(lambda socket=socket: socket.messages() == ["a", "b"])  # type: ignore[misc]
        assert (socket.events[0].epoch == socket.events[1].epoch) is durable
        assert not socket.lost


async def test_paused_redis_keeps_sockets_and_delivers_when_it_is_back(
    valkey_server: ValkeyServer, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey_server.url, durable=True, timeout_seconds=0.4)
    socket = await node.join()
    valkey_server.pause()
    with pytest.raises(RedisUnavailable):
        await node.redis.call("PING")
    await node.hub.check()
    valkey_server.resume()
    await node.redis.connected.wait()

    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: socket.messages() == ["a"])
    assert not socket.lost


async def test_publication_refused_for_want_of_memory_hides_no_later_one(
    valkey_server: ValkeyServer, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey_server.url)
    socket = await node.join()
    await node.redis.call("CONFIG", "SET", "maxmemory", 1)
    for call in (node.streams.publish(ALICE, b'{"type":"queued"}'), node.streams.apply(ALICE, [echo("a")])):
        with pytest.raises(RedisUnavailable):
            await call
    await node.redis.call("CONFIG", "SET", "maxmemory", 0)

    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: len(socket.frames) > 1)

    assert socket.types() == ["connection", "echo"]


# The cursor


async def _cursor(node: Node) -> int:
    return int(await node.redis.call("HGET", names_of(ALICE).state, "cursor") or 0)


async def test_cursor_passes_a_frame_once_its_socket_has_survived(valkey: str, stack: AsyncExitStack) -> None:
    clock = Clock()
    node = await open_node(stack, valkey, clock=clock)
    socket = await node.join()
    await node.streams.apply(ALICE, [echo("a"), echo("b")])
    await socket.until(lambda: len(socket.events) == 2)
    node.hub.written(socket, socket.events[0])
    clock.now += 20
    node.hub.written(socket, socket.events[1])

    positions = []
    for seconds in (19, 2, 17, 3):
        clock.now += seconds
        node.hub._cursors.count_old()
        await node.hub._cursors.flush()
        positions.append(await _cursor(node))

    assert positions == [0, 1, 1, 2]
    assert (await node.join()).messages() == []


@pytest.mark.parametrize(("clean", "again"), [(True, []), (False, ["a"])])
async def test_cursor_passes_a_frame_when_its_client_closes_in_order(
    valkey: str, stack: AsyncExitStack, clean: bool, again: list[str]
) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: len(socket.events) == 1)
    node.hub.written(socket, socket.events[0])

    await node.hub.detach(socket, clean=clean)
    await node.hub._cursors.flush()

    assert (await node.join()).messages() == again


async def test_cursor_does_not_pass_what_was_sent_but_never_written(valkey: str, stack: AsyncExitStack) -> None:
    node = await open_node(stack, valkey)
    socket = await node.join()
    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: len(socket.events) == 1)

    await node.hub.detach(socket, clean=True)
    await node.hub._cursors.flush()

    assert await _cursor(node) == 0


async def test_cursor_that_cannot_be_moved_now_is_moved_later(
    valkey_server: ValkeyServer, stack: AsyncExitStack
) -> None:
    node = await open_node(stack, valkey_server.url, durable=True)
    socket = await node.join()
    await node.streams.apply(ALICE, [echo("a")])
    await socket.until(lambda: len(socket.events) == 1)
    node.hub.written(socket, socket.events[0])
    valkey_server.stop()
    await eventually(lambda: not node.streams.connected)

    await node.hub.detach(socket, clean=True)
    await node.hub._cursors.flush()
    valkey_server.start()
    await node.redis.connected.wait()
    await node.hub._cursors.flush()

    assert await _cursor(node) == 1
