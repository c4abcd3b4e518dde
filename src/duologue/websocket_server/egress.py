"""What goes out on one socket: one bounded queue, and one writer while there is something in it.

A frame that the transport takes at once never sees the queue. When it backs up, neighbouring deltas of a reply become
one; when it is full, the reader is too slow: what waited is forgotten, and the owner is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec
import structlog
from starlette.types import Send

from duologue.observability.metrics import DELTAS_MERGED
from duologue.protocol import frames
from duologue.websocket_server.transport import Transport

_log = structlog.get_logger(__name__)

CLOSE_SECONDS: Final = 5.0
"""How long a close may wait for the peer to read what is before it. Then the connection is ended without one."""

_OVERHEAD_BYTES: Final = 96
"""What a waiting frame costs beyond its own bytes."""

Event = TypeVar("Event")

_deltas: msgspec.json.Decoder[frames.Delta] = msgspec.json.Decoder(frames.Delta)


class _Waiting(Generic[Event]):
    """A frame that waits."""

    __slots__ = ("event", "frame")

    def __init__(self, frame: bytes, event: Event | None) -> None:
        self.frame = frame
        self.event = event

    @property
    def size(self) -> int:
        return len(self.frame) + _OVERHEAD_BYTES

    def encoded(self) -> bytes:
        return self.frame


class _WaitingDelta:
    """A delta that waits, and those that joined it. It is decoded only once another comes."""

    __slots__ = ("_first", "_frame", "_last_seq", "_parts", "event", "size")

    def __init__(self, frame: bytes) -> None:
        self.event = None
        self.size = len(frame) + _OVERHEAD_BYTES
        self._frame = frame
        self._first: frames.Delta | None = None
        self._last_seq = 0
        self._parts: list[str] = []

    def join(self, frame: bytes) -> bool:
        """Take the next delta in, if it continues this one; return whether it did."""
        if self._first is None:
            self._first = _deltas.decode(self._frame)
            self._last_seq = self._first.seq
            self._parts.append(self._first.content)
        delta = _deltas.decode(frame)
        if (delta.message_id, delta.attempt) != (self._first.message_id, self._first.attempt):
            return False
        if (delta.from_seq or delta.seq) != self._last_seq + 1:
            return False
        self._last_seq = delta.seq
        self._parts.append(delta.content)
        self.size += len(delta.content.encode())
        return True

    def encoded(self) -> bytes:
        first = self._first
        if first is None or len(self._parts) == 1:
            return self._frame
        merged = frames.Delta(
            message_id=first.message_id,
            conversation_id=first.conversation_id,
            attempt=first.attempt,
            seq=self._last_seq,
            from_seq=first.from_seq or first.seq,
            content="".join(self._parts),
        )
        return frames.encode(merged)


class Egress(Generic[Event]):
    """The way out of one socket.

    Args:
        send: ASGI's.
        transport: the socket below it, or None.
        limit_bytes: what may wait.
        on_written: told of each durable frame's event once the transport has the frame.
        on_overflow: told when more waits than may; it calls `close`.
    """

    __slots__ = (
        "_close",
        "_closing",
        "_deadline",
        "_limit",
        "_on_overflow",
        "_on_written",
        "_queue",
        "_send",
        "_size",
        "_transport",
        "_waiters",
        "_writer",
    )

    def __init__(
        self,
        send: Send,
        transport: Transport | None,
        *,
        limit_bytes: int,
        on_written: Callable[[Event], None],
        on_overflow: Callable[[], None],
    ) -> None:
        self._send = send
        self._transport = transport
        self._limit = limit_bytes
        self._on_written = on_written
        self._on_overflow = on_overflow
        self._queue: deque[_Waiting[Event] | _WaitingDelta] = deque()
        self._size = 0
        self._closing = False
        self._close: int | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._writer: asyncio.Task[None] | None = None

    @property
    def waiting_bytes(self) -> int:
        """What waits, with what it costs to wait."""
        return self._size

    def put(self, frame: bytes) -> None:
        """Send a frame."""
        if not self._written_now(frame):
            self._append(_Waiting(frame, None))

    def put_durable(self, frame: bytes, event: Event) -> None:
        """Send a frame whose writing is of interest."""
        if self._written_now(frame):
            if not self._closing:
                self._on_written(event)
        else:
            self._append(_Waiting(frame, event))

    def put_delta(self, frame: bytes) -> None:
        """Send a piece of a reply, which may join the piece before it."""
        if self._written_now(frame):
            return
        last = self._queue[-1] if self._queue else None
        if not isinstance(last, _WaitingDelta):
            self._append(_WaitingDelta(frame))
            return
        before = last.size
        if last.join(frame):
            DELTAS_MERGED.inc()
            self._grow(last.size - before)
        else:
            self._append(_WaitingDelta(frame))

    def close(self, code: int, *, drop: bool) -> None:
        """Close the socket once what waits is written; with `drop`, what waits is forgotten. The first call counts."""
        if self._closing:
            return
        self._closing = True
        self._close = code
        if drop:
            self._forget()
        self._wake_waiters()
        self._deadline = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._abort)
        self._start_writer()

    async def drained(self) -> None:
        """Return when there is room again for much, or when nothing more will be sent."""
        while self._size > self._limit // 4 and not self._closing:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def aclose(self) -> None:
        """The socket is gone: forget what waits and see the writer off."""
        self._closing = True
        self._forget()
        self._wake_waiters()
        if self._writer is not None:
            # It ends by itself: a close that it is about to send is worth the wait, and a transport that is lost or
            # aborted lets it go.
            await asyncio.wait([self._writer])
        if self._deadline is not None:
            self._deadline.cancel()

    def _written_now(self, frame: bytes) -> bool:
        """Return whether a frame needs to wait no more: the transport has it, or nobody will ever read it."""
        if self._closing:
            return True
        return self._writer is None and self._transport is not None and self._transport.write_now(frame)

    def _append(self, waiting: _Waiting[Event] | _WaitingDelta) -> None:
        self._queue.append(waiting)
        self._grow(waiting.size)
        self._start_writer()

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size > self._limit:
            self._forget()
            self._on_overflow()

    def _forget(self) -> None:
        self._queue.clear()
        self._size = 0

    def _start_writer(self) -> None:
        if self._writer is None and (self._queue or self._close is not None):
            self._writer = asyncio.create_task(self._write(), name="egress")

    async def _write(self) -> None:
        try:
            while self._queue:
                waiting = self._queue.popleft()
                self._size -= waiting.size
                await self._send({"type": "websocket.send", "text": waiting.encoded().decode()})
                if waiting.event is not None:
                    self._on_written(waiting.event)
                if self._size <= self._limit // 4:
                    self._wake_waiters()
            if self._close is not None:
                code, self._close = self._close, None
                await self._send({"type": "websocket.close", "code": code})
        except OSError:  # the client is gone: the reader hears of it too, and ends the connection
            self._closing = True
            self._close = None
            self._forget()
            self._wake_waiters()
        finally:
            self._writer = None

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _abort(self) -> None:
        if self._writer is not None:
            _log.info("connection_aborted", reason="its close could not be written in time")
            if self._transport is not None:
                self._transport.abort()
            else:
                self._writer.cancel()
