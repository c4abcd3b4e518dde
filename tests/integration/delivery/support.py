"""What the delivery tests share: frames, a socket that records, a connection to Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from duologue.delivery.names import EventPosition
from duologue.delivery.stream import AttachReply, DurableFrame, UserStreams
from duologue.domain.ids import UserKey, new_id
from duologue.engines.redis import Redis
from duologue.protocol.frames import Delta, Typing, encode

ALICE = UserKey("default", "alice")
BOB = UserKey("default", "bob")
DEADLINE_SECONDS = 20.0
CLOSING = encode(Typing(role="ai", conversation_id="c", active=False))


@asynccontextmanager
async def open_streams(
    url: str, *, durable: bool = False, timeout_seconds: float = 5.0
) -> AsyncIterator[tuple[UserStreams, Redis]]:
    """Open a process's streams, and the connection that they use."""
    async with Redis(url, name="test", scripts=UserStreams.scripts, timeout_seconds=timeout_seconds) as redis:
        yield UserStreams(redis, durable=durable), redis


def echo(message_id: str, size: int = 0) -> DurableFrame:
    """Return a durable frame that says which message it is of, padded by `size` bytes."""
    frame = json.dumps({"type": "echo", "message_id": message_id, "content": "x" * size}).encode()
    return DurableFrame("echo", message_id, 0, frame)


def response(message_id: str, attempt: int = 1) -> DurableFrame:
    """Return the good outcome of an attempt."""
    frame = json.dumps({"type": "response", "message_id": message_id, "attempt": attempt}).encode()
    return DurableFrame("response", message_id, attempt, frame, CLOSING)


def failure(message_id: str, attempt: int = 1) -> DurableFrame:
    """Return the bad outcome of an attempt."""
    frame = json.dumps({"type": "error", "message_id": message_id, "attempt": attempt}).encode()
    return DurableFrame("failed", message_id, attempt, frame, CLOSING)


def delta(message_id: str, seq: int, content: str, attempt: int = 1) -> bytes:
    """Return a delta's frame."""
    return encode(Delta(message_id=message_id, conversation_id="c", attempt=attempt, seq=seq, content=content))


async def eventually(holds: Callable[[], bool]) -> None:
    """Return once `holds`; for what nothing tells of."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():  # noqa: ASYNC110  # nothing sets an event for it
            await asyncio.sleep(0.005)


class RecordingSocket:
    """A socket that keeps what it was sent, in order, as decoded frames. It is a `Socket` of the hub."""

    def __init__(self) -> None:
        self.session_id = new_id()
        self.frames: list[dict[str, Any]] = []
        self.events: list[EventPosition] = []
        self.deltas = 0
        self.room = asyncio.Event()
        self.room.set()
        self.drains = 0
        self.lost = False
        self.was_revoked = False
        self._changed = asyncio.Event()

    def greet(self, reply: AttachReply) -> None:
        """Take the place of the `connection` frame."""
        self._take({"type": "connection", "recovered": reply.recovered, "event_id": reply.event_id})

    def send_durable(self, event: EventPosition, frame: bytes) -> None:
        decoded = json.loads(frame)
        assert decoded["event_id"] == event.event_id
        self.events.append(event)
        self._take(decoded)

    def send_delta(self, frame: bytes) -> None:
        self.deltas += 1
        self._take(json.loads(frame))

    def send(self, frame: bytes) -> None:
        self._take(json.loads(frame))

    async def drained(self) -> None:
        self.drains += 1
        self._changed.set()
        await self.room.wait()

    def feed_lost(self) -> None:
        self.lost = True
        self._changed.set()

    def revoked(self) -> None:
        self.was_revoked = True
        self._changed.set()

    def types(self) -> list[str]:
        """Return the types of all frames."""
        return [frame["type"] for frame in self.frames]

    def messages(self) -> list[str]:
        """Return the messages of the durable frames, in order."""
        return [frame["message_id"] for frame in self.frames if "event_id" in frame and frame["type"] != "connection"]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once `holds`; it is looked at whenever something was sent."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    def _take(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        self._changed.set()
