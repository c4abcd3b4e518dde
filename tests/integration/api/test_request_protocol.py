"""Bounds on the head of a request, at a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from duologue.api import request_protocol
from duologue.config import Settings
from duologue.listener import bind
from duologue.runner import http_server
from duologue.websocket_server.transport import SocketProtocol

_WAIT_SECONDS = 10.0


async def _hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server's port."""
    with bind("127.0.0.1", 0) as listener:
        server = http_server(Starlette(routes=[Route("/", _hello)]), Settings(), SocketProtocol)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening.wait()
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


async def _answer(port: int, *parts: bytes) -> bytes:
    """Return all that the server sends until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(_WAIT_SECONDS):
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()


async def test_head_that_never_ends_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_protocol, "HEAD_SECONDS", 0.05)
    assert await _answer(port, b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ") == b""


async def test_connection_that_says_nothing_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_protocol, "HEAD_SECONDS", 0.05)
    assert await _answer(port) == b""


async def test_head_without_bound_is_431(port: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: "
    # No byte more: what the server leaves unread would make a reset of its close.
    answer = await _answer(port, head, b"x" * (request_protocol.MAX_HEAD_BYTES + 1 - len(head)))
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_requests_of_one_connection_are_bounded_each_for_itself(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_protocol, "MAX_HEAD_BYTES", 100)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(_WAIT_SECONDS):
        for _ in range(5):
            for part in (b"GET / HTTP/1.1\r\n", b"Host: a\r\nX-Some: " + b"x" * 50, b"\r\n\r\n"):
                writer.write(part)
                await writer.drain()
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    writer.close()


_UPGRADE = (
    b"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (b"/ws?last_event_id=" + b"1" * 20_000, b"", b"414"),
        (b"/ws", b"X-Long: " + b"x" * 20_000 + b"\r\n", b"431"),
        (b"/ws", b"".join(b"X-%d: a\r\n" % number for number in range(200)), b"431"),
        (b"/ws", b"Transfer-Encoding: chunked\r\n", b"400"),
    ],
    ids=["long address", "long header", "many headers", "body"],
)
async def test_handshake_that_cannot_be_read_is_answered_and_closed(
    port: int, path: bytes, headers: bytes, status: bytes
) -> None:
    answer = await _answer(port, b"GET " + path + b" HTTP/1.1\r\n" + _UPGRADE + headers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
