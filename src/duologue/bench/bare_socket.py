"""A WebSocket client that costs next to nothing, for load: RFC 6455 as far as Duologue's server speaks it.

Text frames up to 2^31 bytes, no extensions, no fragments (the server sends none), a mask of zeros, which the RFC
allows to be any value and which leaves the text as it is.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import struct
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

_TEXT: Final = 0x81
_CLOSE: Final = 0x8
_PING: Final = 0x9
_NO_MASK: Final = b"\0\0\0\0"


class BareSocket(asyncio.Protocol):
    """One socket: `on_text` gets each text frame, `on_close` the close code (1006 without one)."""

    __slots__ = (
        "_buffer",
        "_greeted",
        "_on_close",
        "_on_text",
        "_opened",
        "_transport",
        "close_code",
        "received_bytes",
    )

    def __init__(self, on_text: Callable[[bytes], None], on_close: Callable[[int], None]) -> None:
        self._on_text = on_text
        self._on_close = on_close
        self._buffer = bytearray()
        self._greeted = False
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self.close_code = 1006
        self.received_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream connection has a stream transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(ConnectionError("the server closed during the handshake"))
        self._on_close(self.close_code)

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._buffer += data
        if not self._greeted and not self._read_greeting():
            return
        while self._read_frame():
            pass

    def _read_greeting(self) -> bool:
        head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not end:
            return False
        self._buffer = bytearray(rest)
        self._greeted = True
        if b" 101 " in head.split(b"\r\n", 1)[0]:
            self._opened.set_result(None)
        else:
            self._opened.set_exception(ConnectionError(head.split(b"\r\n", 1)[0].decode()))
        return True

    def _read_frame(self) -> bool:
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        length, start = buffer[1] & 0x7F, 2
        if length == 126:
            start = 4
        elif length == 127:
            start = 10
        if len(buffer) < start:
            return False
        if start > 2:
            length = int.from_bytes(buffer[2:start], "big")
        end = start + length
        if len(buffer) < end:
            return False
        opcode, payload = buffer[0] & 0x0F, bytes(buffer[start:end])
        del buffer[:end]
        self._dispatch(opcode, payload)
        return True

    def _dispatch(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            self._on_text(payload)
        elif opcode == _PING:
            self._send(0x8A, payload)
        elif opcode == _CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self._send(0x88, payload[:2])
            self.close()

    def send(self, text: bytes) -> None:
        """Send one text frame."""
        self._send(_TEXT, text)

    def _send(self, first: int, payload: bytes) -> None:
        length = len(payload)
        if length < 126:
            head = bytes((first, 0x80 | length))
        elif length < 65536:
            head = struct.pack("!BBH", first, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", first, 0x80 | 127, length)
        if self._transport is not None:
            self._transport.write(head + _NO_MASK + payload)

    def close(self) -> None:
        """Close without ceremony."""
        if self._transport is not None:
            self._transport.close()

    def leave(self) -> None:
        """Close in order: the server answers the close frame and ends the connection."""
        self._send(0x88, (1000).to_bytes(2, "big"))

    def abort(self) -> None:
        """Vanish: nothing more is sent or told."""
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Read nothing, so that what comes backs up at the server."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def opened(self) -> None:
        """Return once the handshake is through. Raises ConnectionError if it is refused."""
        await self._opened


async def open_socket(url: str, on_text: Callable[[bytes], None], on_close: Callable[[int], None]) -> BareSocket:
    """Connect to a `ws://` or `wss://` URL.

    Raises:
        OSError: nothing listens there, or the handshake is refused (ConnectionError).
    """
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    secure = parts.scheme == "wss"
    _, socket = await loop.create_connection(
        lambda: BareSocket(on_text, on_close),
        parts.hostname or "127.0.0.1",
        parts.port or (443 if secure else 80),
        ssl=ssl.create_default_context() if secure else None,
    )
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    transport = socket._transport  # noqa: SLF001  # this function is the class's constructor
    if transport is not None:
        transport.write(request.encode())
    try:
        await socket.opened()
    except BaseException:
        socket.abort()
        raise
    return socket
