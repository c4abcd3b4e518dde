"""uvicorn's WebSocket protocol with what a server of slow readers needs besides.

ASGI alone knows neither a write that does not wait nor an end that does not wait for the peer. The scope's extension
`EXTENSION` gives both to the application; without it (another server, a test client) the application does without.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Protocol, cast

from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.protocol import State

EXTENSION: Final = "duologue.transport"

_WHOLE_TEXT: Final = 0x81
_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

GOODBYE_SECONDS: Final = 3.0
"""How long the end of the process may wait for a peer to answer a close: less than uvicorn waits for tasks."""

LINGER_SECONDS: Final = 5.0
"""How long a connection that is done with may wait for its peer to read the rest, or to end what it is sending."""

SILENCE_SECONDS: Final = 0.5
"""How long nothing must have come from a peer before a connection that it has broken the rules on is closed."""


class Transport(Protocol):
    """The socket below ASGI."""

    def write_now(self, text: bytes) -> bool:
        """Write a text frame if the transport takes it without waiting; return whether it did."""
        ...

    def abort(self) -> None:
        """End the connection at once; what is not on the wire yet is lost."""
        ...


class SocketProtocol(WebSocketsSansIOProtocol):
    """For uvicorn's option `ws`."""

    _failed_at: float | None = None

    async def run_asgi(self) -> None:
        self.scope["extensions"] = {**(self.scope["extensions"] or {}), EXTENSION: cast("dict[object, object]", self)}
        await super().run_asgi()
        # What a peer does not read would hold a connection that is done with for ever.
        if self.transport.get_write_buffer_size():
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._failed_at is not None:
            self._close_when_silent(self._failed_at)
            return
        super().data_received(data)
        # The base class acts on events, and a request that the parser itself refuses is none.
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        """Send the answer that the parser has prepared, if any (414 or 431), and hold the connection no longer."""
        if not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()) or _BAD_REQUEST)
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        # The base class would close it too, but with a stack trace in the log for what is the client's fault.
        if self.curr_msg_data_type == "text" and not _is_utf8(self.frames):
            self.conn.send_close(CloseCode.INVALID_DATA)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Send the close frame of a failed connection, and leave the peer the time to read it.

        To close while bytes wait unread resets a TCP connection (RFC 2525, section 2.17), which can take the frame away
        from a peer, or a proxy, that is still sending: so what it sends is read and thrown away first.
        """
        closed = self.conn.close_sent
        if closed is None:
            raise AssertionError("a connection that failed has sent why")
        self._failed_at = self.loop.time()
        self.close_sent = True
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._close_when_silent(self._failed_at)

    def _close_when_silent(self, failed_at: float) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        left = failed_at + LINGER_SECONDS - self.loop.time()
        self.close_timer = self.loop.call_later(min(SILENCE_SECONDS, max(left, 0)), self.transport.close)

    def shutdown(self) -> None:
        # As above: what a peer sends before it has read that it is closed must not meet a connection that is gone.
        if self.close_sent and self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(GOODBYE_SECONDS, self.transport.close)
        else:
            super().shutdown()

    def write_now(self, text: bytes) -> bool:
        """See `Transport.write_now`."""
        if not self.writable.is_set() or not self.handshake_complete or self.close_sent or self.disconnected:
            return False
        if self.transport.is_closing():
            return False
        if self.conn.state is not State.OPEN:  # it is being closed from the other side
            return False
        if self.conn.extensions:
            self.conn.send_text(text)
            self.transport.write(b"".join(self.conn.data_to_send()))
        else:  # the same bytes, for a tenth of the time that the protocol's own frame objects take
            self.transport.write(_text_header(len(text)) + text)
        return True

    def abort(self) -> None:
        """See `Transport.abort`."""
        self.transport.abort()

    def handle_ping(self) -> None:
        # Pongs go past every queue: a peer that pings and never reads would fill the memory with them.
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.abort()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        # The close that this sent waits for a peer to read what is before it. One that does not, must not hold it.
        if self.transport.get_write_buffer_size():
            self.abort()


def _is_utf8(parts: Sequence[bytes]) -> bool:
    """Tell whether the parts of a text frame are UTF-8 as a whole."""
    try:
        b"".join(parts).decode()
    except UnicodeDecodeError:
        return False
    return True


def _text_header(length: int) -> bytes:
    """Return the header of an unmasked text frame that is whole (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes((_WHOLE_TEXT, length))
    if length < 65_536:
        return struct.pack("!BBH", _WHOLE_TEXT, 126, length)
    return struct.pack("!BBQ", _WHOLE_TEXT, 127, length)


def transport_of(scope: Scope) -> Transport | None:
    """Return the transport below an ASGI WebSocket scope, None if the server has no such extension."""
    return cast("Transport | None", scope.get("extensions", {}).get(EXTENSION))
