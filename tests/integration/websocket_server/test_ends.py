"""How sockets end: too many, revoked, too slow, drained."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support.edge import Edge, eventually, running_edge, user
from tests.support.socket_client import WAIT_SECONDS
from websockets.exceptions import InvalidStatus

from duologue.delivery.probe import Echo
from duologue.domain.clock import wall_clock
from duologue.log.port import LogProducer
from duologue.observability.metrics import SLOW_READERS
from duologue.store.deletion import delete_user
from duologue.store.users import find_user
from duologue.websocket_server import egress, transport


async def test_eleventh_socket_of_a_user_closes_the_oldest_with_4429(edge: Edge) -> None:
    token = await edge.token("ann")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(edge.connect(token)) for _ in range(11)]
        error = await clients[0].receive()
        assert (error["code"], error["temporary"]) == ("too_many_connections", False)
        assert await clients[0].closed() == 4429
        for client in clients[1:]:
            await client.ping()
        await eventually(lambda: edge.server.connections == 10)
        assert edge.server.users == 1
    await eventually(lambda: edge.server.connections == 0)
    assert edge.server.users == 0


async def test_revocation_closes_every_socket_of_the_user_with_4401(edge: Edge) -> None:
    ann, bob = await edge.token("ann"), await edge.token("bob")
    async with edge.connect(ann) as phone, edge.connect(ann) as laptop, edge.connect(bob) as other:
        await edge.streams.revoke(user("ann"))
        for client in (phone, laptop):
            assert (await client.receive())["code"] == "invalid_token"
            assert await client.closed() == 4401
        await other.ping()


async def test_server_that_does_not_hear_itself_closes_with_1013_and_takes_no_socket_until_it_does(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await edge.token("ann")

    async def unheard(connected: asyncio.Event) -> Echo:
        return Echo.UNHEARD

    async with edge.connect(token) as client:
        with monkeypatch.context() as patch:
            patch.setattr(edge.hub._probe, "ask", unheard)
            await edge.hub.probe()
        assert await client.closed() == 1013
    with pytest.raises(InvalidStatus) as refused:
        async with edge.connect(token):
            pass
    assert refused.value.response.status_code == 503
    await edge.hub.probe()
    async with edge.connect(token) as client:
        await client.ping()


async def test_deleted_user_is_found_by_the_check_even_if_nobody_said_so(valkey: str, tmp_path: Path) -> None:
    async with running_edge(valkey, tmp_path, revocation_check_seconds=0.05) as edge:
        ann, bob = await edge.token("ann"), await edge.token("bob")
        async with edge.connect(ann) as client, edge.connect(bob) as other:
            row = await edge.database.read(find_user, "default", "ann")
            assert row is not None
            await edge.database.write(delete_user, row.uid, wall_clock())
            assert await client.closed() == 4401
            await other.ping()


async def test_client_that_reads_too_late_is_closed_with_1013_and_memory_stays_bounded(edge: Edge) -> None:
    ann, bob = await edge.token("ann"), await edge.token("bob")
    before = SLOW_READERS._value.get()
    async with edge.connect(ann) as slow, edge.connect(bob) as other:
        frame = b'{"type":"other","content":"' + b"x" * 65_000 + b'"}'
        most = 0
        while SLOW_READERS._value.get() == before:  # kernel and client take several megabytes before it backs up
            await edge.streams.publish(user("ann"), *[frame] * 8)
            most = max(most, edge.server.queued_bytes)
        assert 0 < most <= edge.settings.send_queue_bytes
        await other.ping()
        assert await slow.closed() == 1013


async def test_client_that_never_reads_is_aborted(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(transport, "LINGER_SECONDS", 0.2)
    async with edge.connect(await edge.token("ann")) as slow:
        frame = b'{"type":"other","content":"' + b"x" * 65_000 + b'"}'
        while edge.server.connections:
            await edge.streams.publish(user("ann"), *[frame] * 8)
        slow.socket.transport.abort()


async def test_drain_closes_with_1012_and_sends_new_sockets_elsewhere(edge: Edge) -> None:
    token = await edge.token("ann")
    async with edge.connect(token) as client, edge.connect(token) as another:
        started = asyncio.get_running_loop().time()
        draining = asyncio.create_task(edge.server.drain(10.0))
        assert await client.closed() == 1012
        assert await another.closed() == 1012
        await draining
        assert asyncio.get_running_loop().time() - started < 1.0
    with pytest.raises(InvalidStatus) as refused:  # before it is accepted: a proxy asks another server
        async with edge.connect(token, greeted=False):
            pass
    assert refused.value.response.status_code == 503


async def _bare_socket(edge: Edge) -> socket.socket:
    """Return a socket that was upgraded and answers nothing by itself."""
    loop = asyncio.get_running_loop()
    bare = socket.create_connection(_address(edge))
    bare.setblocking(False)
    token = await edge.token("ann")
    lines = (
        f"GET /ws?token={token} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    await loop.sock_sendall(bare, "\r\n".join((*lines, "", "")).encode())
    received = b""
    while b'"type":"connection"' not in received:
        received += await loop.sock_recv(bare, 65_536)
    return bare


def _address(edge: Edge) -> tuple[str, int]:
    where = urlsplit(edge.url)
    assert where.hostname is not None
    assert where.port is not None
    return where.hostname, where.port


def _is_refused(edge: Edge) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(_address(edge)) != 0


async def test_process_that_ends_still_reads_what_comes_before_the_answer_to_its_close(
    valkey: str, tmp_path: Path
) -> None:
    running, stop = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with running_edge(valkey, tmp_path) as edge:
            edges.append(edge)
            running.set()
            await stop.wait()

    edges: list[Edge] = []
    loop = asyncio.get_running_loop()
    process = asyncio.create_task(run())
    await running.wait()
    with await _bare_socket(edges[0]) as peer:
        stop.set()
        async with asyncio.timeout(WAIT_SECONDS):
            while b"\x88\x02\x03\xf4" not in await loop.sock_recv(peer, 65_536):  # the close with 1012
                pass
            await eventually(lambda: _is_refused(edges[0]))
            await loop.sock_sendall(peer, b"\x81\x82" + bytes(4) + b"{}")
            await loop.sock_sendall(peer, b"\x88\x82" + bytes(4) + b"\x03\xf4")  # would break on a connection reset
            assert await loop.sock_recv(peer, 65_536) == b""
            await process


class _HeldProducer:
    """A log whose acknowledgement waits for the test."""

    def __init__(self, producer: LogProducer) -> None:
        self._producer = producer
        self.appending = asyncio.Event()
        self.go_on = asyncio.Event()

    async def append(self, *arguments: Any) -> None:
        self.appending.set()
        await self.go_on.wait()
        await self._producer.append(*arguments)


async def test_drain_waits_for_the_acknowledgement_of_what_was_taken(valkey: str, tmp_path: Path) -> None:
    held: list[_HeldProducer] = []

    def wrap(producer: LogProducer) -> LogProducer:
        held.append(_HeldProducer(producer))
        return held[0]

    async with running_edge(valkey, tmp_path, wrap=wrap) as edge, edge.connect(await edge.token("ann")) as client:
        await client.send(type="message", id="one", content="Hello")
        await held[0].appending.wait()
        assert edge.server.in_flight == 1
        draining = asyncio.create_task(edge.server.drain(10.0))
        await asyncio.sleep(0)
        held[0].go_on.set()
        assert (await client.receive())["id"] == "one"
        assert await client.closed() == 1012
        await draining


async def test_client_that_pings_and_never_reads_is_aborted(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        client.socket.transport.pause_reading()
        while edge.server.connections:
            for _ in range(200):
                client.socket.protocol.send_ping(secrets.token_bytes(100))
            client.socket.transport.write(b"".join(client.socket.protocol.data_to_send()))
            await asyncio.sleep(0)
        client.socket.transport.abort()


async def test_text_that_is_no_utf8_closes_with_1007_and_is_no_error_of_the_server(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        client.socket.protocol.send_text(b'{"type":"ping","id":"\xff"}')
        client.socket.transport.write(b"".join(client.socket.protocol.data_to_send()))
        assert await client.closed() == 1007
    assert not caplog.records


async def test_client_that_reads_only_once_it_has_sent_a_frame_too_large_hears_1009(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        below = client.socket.transport
        below.pause_reading()  # as a proxy may, which passes on one direction at a time
        client.socket.protocol.send_text(b"x" * 16 * 1024 * 1024)  # more than the kernel's buffers take
        below.write(b"".join(client.socket.protocol.data_to_send()))
        await eventually(lambda: below.get_write_buffer_size() == 0)
        below.resume_reading()
        assert await client.closed() == 1009
    await eventually(lambda: edge.server.connections == 0)
