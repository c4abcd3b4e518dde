"""What a socket is sent over its life, and how it ends by what the network or its peer does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.edge import Edge, eventually, running_edge, user
from tests.support.socket_client import Client
from websockets.asyncio.client import connect
from websockets.frames import Opcode

from duologue.delivery.stream import DurableFrame
from duologue.domain.clock import wall_clock
from duologue.domain.records import INCOMING_TOPIC
from duologue.protocol import frames
from duologue.store.messages import Incoming, store_messages
from duologue.websocket_server import places


def _echo(number: int) -> DurableFrame:
    frame = frames.Echo(
        role="user", id=f"c{number}", message_id=f"m{number}", conversation_id="c", content="Hello", timestamp="now"
    )
    return DurableFrame("echo", f"m{number}", 0, frames.encode(frame))


async def _missed(edge: Edge, token: str, last_event_id: str = "") -> list[str]:
    """Connect, and return the messages of what comes before the answer to a ping."""
    async with edge.connect(token, last_event_id=last_event_id) as client:
        await client.send(type="ping", id="end")
        found = []
        while (frame := await client.receive())["type"] != "pong":
            found.append(frame["message_id"])
        client.socket.transport.abort()  # so that this changes nothing
    return found


async def test_first_device_ever_gets_the_oldest_that_there_is(edge: Edge) -> None:
    token = await edge.token("ann")
    await edge.streams.apply(user("ann"), [_echo(1), _echo(2)])
    async with edge.connect(token) as client:
        assert client.connection["recovered"] is True
        assert [(await client.receive())["message_id"] for _ in range(2)] == ["m1", "m2"]


@pytest.mark.parametrize(("clean", "again"), [(True, ["m3"]), (False, ["m1", "m2", "m3"])])
async def test_client_without_last_event_id_gets_again_what_went_into_a_broken_connection(
    edge: Edge, clean: bool, again: list[str]
) -> None:
    token = await edge.token("ann")
    async with edge.connect(token) as client:
        await edge.streams.apply(user("ann"), [_echo(1), _echo(2)])
        for _ in range(2):
            await client.receive()
        if not clean:
            client.socket.transport.abort()
    await eventually(lambda: edge.server.connections == 0)
    await edge.hub._cursors.flush()
    await edge.streams.apply(user("ann"), [_echo(3)])
    assert await _missed(edge, token) == again


async def test_client_without_last_event_id_is_told_once_what_redis_has_lost(edge: Edge) -> None:
    token = await edge.token("ann")
    async with edge.connect(token) as client:
        assert client.connection["recovered"] is True  # there was nothing to lose
        await client.send(type="message", id="c1", content="Hello")
        (record,) = await edge.records(1)
        batch = [Incoming(record, INCOMING_TOPIC, 0, 1)]
        await edge.database.write(store_messages, batch, wall_clock())
        client.socket.transport.abort()
    await eventually(lambda: edge.server.connections == 0)
    await edge.streams.forget(user("ann"))
    for _ in range(2):  # nobody knows yet whether the first of these was heard
        async with edge.connect(token) as client:
            assert client.connection["recovered"] is False
            client.socket.transport.abort()
        await eventually(lambda: edge.server.connections == 0)
    async with edge.connect(token) as client:
        assert client.connection["recovered"] is False
    await eventually(lambda: edge.server.connections == 0)
    await edge.hub._cursors.flush()
    async with edge.connect(token) as client:
        assert client.connection["recovered"] is True


async def test_event_id_of_the_greeting_is_a_place_to_come_back_to(edge: Edge) -> None:
    token = await edge.token("ann")
    await edge.streams.apply(user("ann"), [_echo(1)])
    async with edge.connect(token) as client:
        before = client.connection["event_id"]
        after = (await client.receive())["event_id"]
    assert await _missed(edge, token, last_event_id=before) == ["m1"]
    assert await _missed(edge, token, last_event_id=after) == []


@pytest.mark.parametrize("text", ["x" * 64, "x" * 5000, "%00", "%FF:1", ":1", "epoch:99999999999999999999", "a:-1"])
async def test_event_id_that_cannot_be_read_is_not_recovered(edge: Edge, text: str) -> None:
    token = await edge.token("ann")
    await edge.streams.apply(user("ann"), [_echo(1)])
    async with connect(f"{edge.url}/ws?token={token}&last_event_id={text}") as opened:
        client = Client(opened)
        assert (await client.receive())["recovered"] is False
        assert (await client.receive())["message_id"] == "m1"


async def test_socket_outlives_its_token(edge: Edge) -> None:
    token = await edge.token("ann", lifetime_seconds=1)
    async with edge.connect(token) as client:

        async def expired() -> bool:
            async with edge.connect(token, greeted=False) as another:
                return bool((await another.receive())["type"] == "error")

        while not await expired():  # noqa: ASYNC110  # the token's own time
            await asyncio.sleep(0.02)
        await client.send(type="message", id="late", content="Hello")
        assert (await client.until("ack"))["id"] == "late"


async def test_client_that_answers_no_ping_is_closed_with_1011(valkey: str, tmp_path: Path) -> None:
    async with running_edge(valkey, tmp_path, pings=(0.1, 0.1)) as edge:
        token = await edge.token("ann")
        async with edge.connect(await edge.token("bob")) as other, edge.connect(token) as client:
            client.socket.protocol.recv_frame = _deaf_to_pings(client)  # type: ignore[method-assign]
            assert await client.closed() == 1011
            await other.ping()


def _deaf_to_pings(client: Client):  # type: ignore[no-untyped-def]
    """Return what receives every frame but pings."""
    receive = client.socket.protocol.recv_frame

    def deaf(frame) -> None:  # type: ignore[no-untyped-def]
        if frame.opcode is not Opcode.PING:
            receive(frame)

    return deaf


async def test_client_that_reads_nothing_of_a_long_replay_is_let_go(valkey: str, tmp_path: Path) -> None:
    async with running_edge(valkey, tmp_path, pings=(0.2, 0.2), send_queue_bytes=65_536) as edge:
        token = await edge.token("ann")
        big = b'{"type":"echo","message_id":"m","content":"' + b"x" * 60_000 + b'"}'
        for start in range(0, 60, 10):
            numbers = range(start, start + 10)
            await edge.streams.apply(user("ann"), [DurableFrame("echo", f"m{number}", 0, big) for number in numbers])
        with socket.create_connection(("127.0.0.1", int(edge.url.rpartition(":")[2]))) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.sendall(
                f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            await eventually(lambda: edge.server.connections == 1)
            async with edge.connect(await edge.token("bob")) as other:
                await eventually(lambda: edge.server.connections == 1)  # only that one is left
                await other.ping()
            assert edge.hub.connections(user("ann")) == 0


@pytest.mark.parametrize(
    ("setting", "limit", "frame"),
    [
        ("max_content_characters", "content_characters", {"type": "message", "content": "x" * 11}),
        ("max_metadata_bytes", "metadata_bytes", {"type": "message", "content": "x", "metadata": {"key": "x" * 10}}),
    ],
)
async def test_limit_that_is_configured_is_told_and_holds(
    valkey: str, tmp_path: Path, setting: str, limit: str, frame: dict[str, object]
) -> None:
    settings: dict[str, Any] = {setting: 10}
    async with (
        running_edge(valkey, tmp_path, **settings) as edge,
        edge.connect(await edge.token("ann")) as client,
    ):
        assert client.connection["limits"][limit] == 10
        await client.send(**frame)
        assert (await client.receive())["type"] == "error"
        await client.send(type="message", content="x" * 10, metadata={})
        assert (await client.receive())["type"] == "ack"


async def test_sockets_and_frames_over_a_configured_limit_are_closed(valkey: str, tmp_path: Path) -> None:
    async with running_edge(valkey, tmp_path, max_connections_per_user=2, max_frame_bytes=1024) as edge:
        token = await edge.token("ann")
        async with edge.connect(token) as oldest, edge.connect(token) as older, edge.connect(token) as newest:
            limits = newest.connection["limits"]
            assert (limits["connections_per_user"], limits["frame_bytes"]) == (2, 1024)
            assert await oldest.closed() == 4429
            await older.send_text("x" * 1025)
            assert await older.closed() == 1009
            await newest.ping()


async def test_frame_in_many_fragments_over_the_limit_closes_with_1009(edge: Edge) -> None:
    ann, bob = await edge.token("ann"), await edge.token("bob")
    async with edge.connect(bob) as other, edge.connect(ann) as client:
        await client.socket.send(["x" * 1024] * 1024)
        assert await client.closed() == 1009
        await other.ping()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/ws?conversation_id=%00", "conversation_not_found"),
        ("/ws?conversation_id=a%00b", "conversation_not_found"),
        ("/ws?conversation_id=%ED%A0%80", "conversation_not_found"),
        ("/ws/a%00b?", "character_not_found"),
        ("/ws/%ED%A0%80?", "character_not_found"),
    ],
)
async def test_impossible_name_in_an_address_is_not_found_without_a_question_to_the_database(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, path: str, code: str
) -> None:
    """A database may refuse such a text for its data, which would look like a fault of the server."""
    for question in ("owned_conversation", "find_character"):
        monkeypatch.setattr(places, question, _storable(getattr(places, question)))
    async with connect(f"{edge.url}{path}&token={await edge.token('ann')}") as opened:
        client = Client(opened)
        assert (await client.receive())["code"] == code
        assert await client.closed() == 1008


def _storable(question: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same question, which fails for what PostgreSQL cannot take as text."""

    def asked(*arguments: Any) -> Any:
        for text in arguments[1:]:
            assert text is None or "\0" not in text
            (text or "").encode()
        return question(*arguments)

    return asked
