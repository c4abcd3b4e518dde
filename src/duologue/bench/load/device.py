"""One socket of a user: it checks every reply by itself, and comes back with the place that it has reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from duologue.bench.bare_socket import BareSocket, open_socket
from duologue.bench.load.frames import Seen, decode
from duologue.bench.load.recorder import Recorder
from duologue.bench.mock_llm import STAMP_PATTERN
from duologue.domain.errors import DuologueError

_ATTACH_SECONDS: Final = 30.0


class NotLetIn(DuologueError):
    """The server answered a socket with an error instead of a greeting. `code` is the protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Owner(Protocol):
    """Whose device it is."""

    recorder: Recorder

    def acknowledged(self, client_id: str, message_id: str, now: float) -> None:
        """A message is accepted."""
        ...

    def named(self, client_id: str, message_id: str) -> None:
        """A message is known by that id from here on."""
        ...

    def began(self, message_id: str, now: float) -> None:
        """The first piece of a reply was seen on this device."""
        ...

    def ended(self, message_id: str, now: float, content: str | None, code: str | None) -> None:
        """A device saw the outcome: the reply's whole text, or None and the code of its failure."""
        ...

    def refused(self, client_id: str, code: str, now: float) -> None:
        """A message was not accepted."""
        ...


class _Reply:
    """A reply as far as this device has seen it."""

    __slots__ = ("attempt", "next_seq", "parts")

    def __init__(self) -> None:
        self.attempt = 0
        self.next_seq = 1
        self.parts: list[str] = []

    def begin(self, attempt: int) -> None:
        self.attempt, self.next_seq = attempt, 1
        self.parts.clear()


class Device:
    """A socket that may be lost and come back.

    Args:
        owner: its user.
        url: gives the address to connect to, with a token.
        on_lost: is told that the server, or the network, has closed it.
    """

    __slots__ = (
        "_attached",
        "_ended",
        "_on_lost",
        "_owner",
        "_replies",
        "_socket",
        "_url",
        "attached",
        "last_event_id",
    )

    def __init__(self, owner: Owner, url: Callable[[], str], on_lost: Callable[[Device], None]) -> None:
        self._owner = owner
        self._url = url
        self._on_lost = on_lost
        self._socket: BareSocket | None = None
        self._attached: asyncio.Future[None] | None = None
        self._replies: dict[str, _Reply] = {}
        self._ended: set[str] = set()
        self.attached = False
        self.last_event_id: str | None = None

    async def connect(self) -> None:
        """Open the socket and return once the server has greeted it.

        Raises:
            NotLetIn: it answers with an error.
            OSError: it cannot be reached, or closes at once (ConnectionError); TimeoutError: it says nothing.
        """
        began = time.perf_counter()
        self._attached = asyncio.get_running_loop().create_future()
        url = self._url()
        if self.last_event_id is not None:
            url += f"&last_event_id={self.last_event_id}"
        try:
            async with asyncio.timeout(_ATTACH_SECONDS):
                socket = await open_socket(url, self._on_text, lambda code: self._on_close(socket, code))
                self._socket = socket
                await self._attached
        except BaseException:
            self.drop()  # what it may still be sent would be seen twice, on the next socket
            raise
        self._owner.recorder.note_attach(time.perf_counter() - began)

    def send(self, frame: bytes) -> None:
        """Send a frame, if the socket is open."""
        if self._socket is not None and self.attached:
            self._socket.send(frame)

    def drop(self) -> None:
        """Lose the socket, without a word to the server."""
        socket, self._socket, self.attached = self._socket, None, False
        if socket is not None:
            socket.abort()

    def leave(self) -> None:
        """Close in order."""
        socket, self._socket, self.attached = self._socket, None, False
        if socket is not None:
            socket.leave()

    def forget(self) -> None:
        """Drop replies that were seen in part. Those that have ended are kept in mind: they must not end again."""
        self._replies.clear()

    def _on_close(self, socket: BareSocket, code: int) -> None:
        if self._attached is not None and not self._attached.done():
            self._attached.set_exception(ConnectionError(f"closed with {code}"))
        if self._socket is socket:
            self._socket, self.attached = None, False
            self._owner.recorder.errors[f"closed with {code}"] += 1
            self._on_lost(self)

    def _on_text(self, text: bytes) -> None:
        frame = decode(text)
        kind = frame.type
        if kind == "delta":
            self._on_delta(frame)
            return
        if frame.event_id is not None:
            self.last_event_id = frame.event_id
        now = time.perf_counter()
        if kind == "ack":
            self._owner.acknowledged(frame.id or "", frame.message_id or "", now)
        elif kind == "echo":
            self._owner.named(frame.id or "", frame.message_id or "")
        elif kind == "response" or (kind == "error" and frame.message_id is not None):
            self._on_outcome(frame, now)
        elif kind == "snapshot":
            self._on_snapshot(frame, now)
        elif kind == "reset":
            self._on_reset(frame)
        elif kind == "connection":
            self._on_connection()
        elif kind == "error":
            self._on_error(frame, now)

    def _on_connection(self) -> None:
        self.attached = True
        if self._attached is not None and not self._attached.done():
            self._attached.set_result(None)

    def _on_error(self, frame: Seen, now: float) -> None:
        code = frame.code or "error"
        if self._attached is not None and not self._attached.done():
            self._attached.set_exception(NotLetIn(code, frame.message or code))
            return
        self._owner.recorder.errors[code] += 1
        if frame.id is not None:
            self._owner.refused(frame.id, code, now)

    def _on_delta(self, frame: Seen) -> None:
        message_id = frame.message_id or ""
        reply = self._replies.get(message_id)
        if reply is None:
            reply = self._first_of(message_id, frame)
            if reply is None:
                return
        if frame.attempt != reply.attempt:
            if frame.attempt < reply.attempt:  # of one that was given up: to be ignored
                return
            reply.begin(frame.attempt)
        recorder = self._owner.recorder
        if (frame.from_seq or frame.seq) != reply.next_seq:
            recorder.breach(
                "gaps in a reply's pieces", f"{message_id}: {frame.from_seq or frame.seq} after {reply.next_seq - 1}"
            )
        reply.next_seq = frame.seq + 1
        content = frame.content or ""
        reply.parts.append(content)
        recorder.deltas += 1
        if "@" in content:
            now = time.time()
            for stamp in STAMP_PATTERN.findall(content):
                recorder.note_delta_delay(now - float(stamp))

    def _first_of(self, message_id: str, frame: Seen) -> _Reply | None:
        if message_id in self._ended:
            self._owner.recorder.breach("pieces after the end of a reply", f"{message_id}: {frame.type} {frame.seq}")
            return None
        reply = self._replies[message_id] = _Reply()
        reply.attempt = frame.attempt
        self._owner.began(message_id, time.perf_counter())
        return reply

    def _on_snapshot(self, frame: Seen, now: float) -> None:
        message_id = frame.message_id or ""
        if message_id in self._ended:
            return  # the end came among what was missed; the live text was read a moment before it
        reply = self._replies.get(message_id)
        if reply is None:
            reply = self._replies[message_id] = _Reply()
            if frame.content:
                self._owner.began(message_id, now)
        if frame.attempt >= reply.attempt:
            reply.begin(frame.attempt)
            reply.next_seq = frame.seq + 1
            reply.parts.append(frame.content or "")

    def _on_reset(self, frame: Seen) -> None:
        reply = self._replies.get(frame.message_id or "")
        if reply is not None and frame.attempt > reply.attempt:
            reply.begin(frame.attempt)

    def _on_outcome(self, frame: Seen, now: float) -> None:
        message_id = frame.message_id or ""
        recorder = self._owner.recorder
        if message_id in self._ended:
            recorder.breach("doubled outcomes", f"{message_id}: {frame.type} {frame.event_id}")
            return
        self._ended.add(message_id)
        reply = self._replies.pop(message_id, None)
        content = frame.content or ""
        if (
            frame.type == "response"
            and reply is not None
            and reply.attempt == frame.attempt
            and not content.startswith("".join(reply.parts))
        ):
            recorder.breach("replies that differ from their pieces", message_id)
        self._owner.ended(message_id, now, content if frame.type == "response" else None, frame.code)
