"""Bytes on each hop, counted by the kernel and by Valkey, of connections whose bytes are known."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Self

import pytest

from duologue.bench import sock_diag
from duologue.bench.hop_bytes import HopBytes
from duologue.bench.hops import UNIX_SOCKET, Hop, Hops, RedisServer, TcpPorts
from duologue.cluster.ports import free_ports
from duologue.cluster.valkey import ValkeyServer

DEADLINE_SECONDS = 10.0
PASSWORD = "a secret / of @ signs"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux counts them")


class Answering:
    """A server that answers what it is told with as many bytes as it is told."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def hop(self) -> TcpPorts:
        return TcpPorts(frozenset({self.port}))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(_answer, self.host, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer):
        while head := await reader.readline():
            sent, wanted = map(int, head.split())
            await reader.readexactly(sent - len(head))
            writer.write(bytes(wanted))
            await writer.drain()


@asynccontextmanager
async def connected(server: Answering) -> AsyncIterator[Callable[[int, int], Awaitable[None]]]:
    """Yield what sends so many bytes and gets so many back."""
    reader, writer = await asyncio.open_connection(server.host, server.port)

    async def exchange(sent: int, received: int) -> None:
        writer.write(f"{sent} {received}\n".encode().ljust(sent, b"x"))
        await reader.readexactly(received)

    try:
        yield exchange
    finally:
        writer.close()
        await writer.wait_closed()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the kernel tells: data counts when it is acknowledged, which may take it a moment."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():  # noqa: ASYNC110  # the kernel has no event for it
                await asyncio.sleep(0.01)


async def until(hops: Hops, expected: Mapping[str, HopBytes]) -> None:
    await eventually(lambda: hops.read() == expected)
    assert hops.read() == expected


@pytest.fixture
async def first() -> AsyncIterator[Answering]:
    async with Answering("127.0.0.1") as server:
        yield server


@pytest.fixture
async def second() -> AsyncIterator[Answering]:
    async with Answering("::1") as server:
        yield server


@linux_only
async def test_hops_of_two_servers_count_every_byte_of_each(first: Answering, second: Answering) -> None:
    with Hops({"nginx": first.hop, "api": second.hop}) as hops:
        async with connected(first) as one, connected(first) as another, connected(second) as third:
            await one(1_000, 5)
            await another(20, 300_000)
            await third(70_000, 7)
            await until(hops, {"nginx": HopBytes(1_020, 300_005), "api": HopBytes(70_000, 7)})
            await one(100, 10)
            await until(hops, {"nginx": HopBytes(1_120, 300_015), "api": HopBytes(70_000, 7)})


@linux_only
async def test_hop_of_several_ports_is_their_sum(first: Answering, second: Answering) -> None:
    ports = TcpPorts(frozenset({first.port, second.port}))
    with Hops({"websocket-server": ports}) as hops:
        async with connected(first) as one, connected(second) as another:
            await one(100, 10)
            await another(200, 20)
            await until(hops, {"websocket-server": HopBytes(300, 30)})


@linux_only
async def test_hop_counts_from_its_beginning_and_no_other_server(first: Answering, second: Answering) -> None:
    async with connected(first) as one, connected(second) as another:
        with Hops({"api": first.hop}) as earlier:
            await one(50_000, 60_000)
            await until(earlier, {"api": HopBytes(50_000, 60_000)})
        with Hops({"api": first.hop}) as hops:
            assert hops.read() == {"api": HopBytes(0, 0)}
            await another(1_000, 1_000)
            await one(30, 40)
            await until(hops, {"api": HopBytes(30, 40)})


@linux_only
async def test_connection_that_has_ended_keeps_its_bytes(first: Answering) -> None:
    """Also what it has carried since the last reading, and one that no reading has seen. Each end of a direction may
    count as a byte, so two a connection at most."""
    with Hops({"api": first.hop}) as hops:
        async with connected(first) as one:
            await one(1_000, 100)
            await until(hops, {"api": HopBytes(1_000, 100)})
            await one(2_000, 200)
        async with connected(first) as unseen:
            await unseen(30_000, 3_000)
        async with connected(first) as third:
            await third(400_000, 40_000)
            await eventually(lambda: hops.read()["api"].to_server >= 433_000)
        found = hops.read()["api"]
        assert 433_000 <= found.to_server <= 433_003
        assert 43_300 <= found.from_server <= 43_303


@linux_only
async def test_connection_whose_end_the_kernel_does_not_tell_counts_as_last_seen(
    first: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sock_diag, "_ended_connections", lambda: None)
    with Hops({"api": first.hop}) as hops:
        async with connected(first) as one:
            await one(1_000, 100)
            await until(hops, {"api": HopBytes(1_000, 100)})
        async with connected(first) as another:
            await another(20, 2)
            await eventually(lambda: hops.read()["api"].to_server >= 1_020)
        assert 1_020 <= hops.read()["api"].to_server <= 1_022


@linux_only
async def test_servers_own_connections_are_not_counted_as_to_another(first: Answering) -> None:
    """The server's end of a connection has the client's port as its remote one, which may be a port of the mapping."""
    with closing(socket.create_connection((first.host, first.port))) as client:
        own_port = client.getsockname()[1]
        with Hops({"api": first.hop, "stranger": TcpPorts(frozenset({own_port}))}) as hops:
            async with connected(first) as one:
                await one(500, 50)
                await until(hops, {"api": HopBytes(500, 50), "stranger": HopBytes(0, 0)})


def test_tcp_hops_where_this_is_not_linux_are_unknown_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with Hops({"api": TcpPorts(frozenset({8080})), "postgresql": UNIX_SOCKET}) as hops:
        assert hops.read() == {}
        assert hops.unknown == {
            "api": "not available: only Linux tells the bytes of a connection",
            "postgresql": UNIX_SOCKET.reason,
        }


@linux_only
async def test_tcp_hops_where_the_kernel_counts_no_bytes_are_unknown_not_zero(
    first: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sock_diag, "_COUNTERS_AT", 4_000)  # as if `struct tcp_info` ended before
    async with connected(first) as one:
        await one(10, 10)
        with Hops({"api": first.hop}) as hops:
            assert hops.read() == {}
            assert "too old" in hops.unknown["api"]


@pytest.fixture
def locked_valkey() -> Iterator[ValkeyServer]:
    """A Valkey on TCP that asks for a password."""
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        server = ValkeyServer(Path(folder), port=free_ports(1)[0], password=PASSWORD)
        server.start()
        yield server
        server.stop()


SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n"
GET = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"


def test_hop_to_valkey_counts_commands_and_answers_but_not_its_own(valkey: str, session_valkey: ValkeyServer) -> None:
    with Hops({"valkey": RedisServer(valkey)}) as hops:
        assert hops.read() == {"valkey": HopBytes(0, 0)}
        assert hops.read() == {"valkey": HopBytes(0, 0)}
        session_valkey.execute("SET", "k", "value")
        session_valkey.execute("GET", "k")
        assert hops.read() == {
            "valkey": HopBytes(len(SET) + len(GET), len(b"+OK\r\n") + len(b"$5\r\nvalue\r\n")),
        }


def test_hop_to_valkey_that_is_started_again_keeps_what_was_counted(locked_valkey: ValkeyServer) -> None:
    with Hops({"valkey": RedisServer(locked_valkey.url)}) as hops:
        for _ in range(9):
            hops.read()
        locked_valkey.execute("SET", "k", "v" * 50_000)
        before = hops.read()["valkey"]
        assert before.to_server > 50_000
        locked_valkey.kill()
        assert hops.read()["valkey"] == before  # it is away
        locked_valkey.start()
        locked_valkey.execute("SET", "k", "v" * 10_000)
        after = hops.read()["valkey"]
        # What a starting server is asked, `AUTH` and `PING`, is in it too.
        assert before.to_server + 10_000 < after.to_server < before.to_server + 12_000
        assert before.from_server < after.from_server < before.from_server + 1_000


def test_hop_to_valkey_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    hop: Hop = RedisServer(f"unix://{tmp_path / 'none.sock'}")
    with Hops({"valkey": hop}) as hops:
        assert hops.read() == {}
        assert "not available" in hops.unknown["valkey"]
