"""One checking client: a raw socket that writes down all it is told and sends, and comes back whenever it breaks.

It is not the client library, which would hide what it is there to mend: repeats, gaps, late frames. It does what the
protocol asks of a client ("What a client does"), and keeps its position only if it is one that does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import msgspec

from duologue.bench.bare_socket import BareSocket, open_socket
from duologue.bench.chaos.history import Closed, DeviceName, Entry, Frame, Opened, Read, Row, Sent
from duologue.client.reconnect import ABNORMAL_CLOSE, ReconnectPolicy
from duologue.client.tokens import ServerUnreachable

RESEND_SECONDS: Final = 10.0
_OPEN_SECONDS: Final = 8.0
_PING_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 14.0
_SLOW_READ_SECONDS: Final = 0.5
_KEPT_WIRES: Final = 50

_frames: Final = msgspec.json.Decoder(Frame)
_encoder: Final = msgspec.json.Encoder()


class Owner(Protocol):
    """The user whose device it is."""

    async def token(self) -> str:
        """Return the user's token. Raises ServerUnreachable."""
        ...

    def told(self, device: Device, frame: Frame) -> None:
        """A device was told a frame."""
        ...


class _Pending:
    """A frame that no answer has come to. `due` is when it is sent (again), by the loop's clock."""

    __slots__ = ("due", "times", "wire")

    def __init__(self, wire: bytes, due: float) -> None:
        self.wire = wire
        self.due = due
        self.times = 0


class Journal:
    """The file of one device: JSON lines, the first one names it."""

    def __init__(self, folder: Path, name: DeviceName) -> None:
        self._file = (folder / f"{name.name}.jsonl").open("wb")
        self._file.write(_encoder.encode(name) + b"\n")

    def write(self, entry: Entry) -> None:
        """Note something, unless the device has left."""
        self._line(_encoder.encode(entry))

    def told(self, text: bytes) -> None:
        """Note a frame as it came."""
        self._line(b'{"type":"told","at":%.4f,"frame":%b}' % (time.time(), text.replace(b"\n", b" ")))

    def _line(self, line: bytes) -> None:
        if not self._file.closed:
            self._file.write(line + b"\n")

    def close(self) -> None:
        """End the file; nothing more is noted."""
        self._file.close()


class Device:
    """See above. `run` holds its connection until it is left; `tick` is called a few times a second.

    Args:
        name: what it is called and how it behaves.
        owner: whose it is.
        ws_url: where the server is.
        conversation: what it connects with: an id, `new`, or None for the default one.
        folder: where its file goes.
        chance: for its waiting.
    """

    def __init__(
        self, name: DeviceName, owner: Owner, ws_url: str, conversation: str | None, folder: Path, chance: random.Random
    ) -> None:
        self.name = name
        self.conversation_id = conversation
        self.features: list[str] = []
        self.seen: set[str] = set()
        self.on_lost_position: Callable[[Device], None] | None = None
        self._owner = owner
        self._ws_url = ws_url
        self._chance = chance
        self._journal = Journal(folder, name)
        self._position: str | None = None
        self._pending: dict[str, _Pending] = {}
        self._wires: deque[bytes] = deque(maxlen=_KEPT_WIRES)
        self._socket: BareSocket | None = None
        self._ended = asyncio.Event()
        self._attached = False
        self._leaving = False
        self._away_until = 0.0
        self._slow_until = 0.0
        self._heard_at = 0.0
        self._ping_at = 0.0
        self._close_code = ABNORMAL_CLOSE

    @property
    def attached(self) -> bool:
        """Whether the server has said `connection` on the present socket."""
        return self._attached

    @property
    def unanswered(self) -> int:
        """Frames that wait for an answer."""
        return len(self._pending)

    # The connection

    async def run(self) -> None:
        """Connect, again and again, until `leave`."""
        policy = ReconnectPolicy()
        while not self._leaving:
            began = time.monotonic()
            opened = await self._hold()
            policy.closed(self._close_code, open_seconds=time.monotonic() - began if opened else 0.0)
            away = self._away_until - time.monotonic()
            delay = away if away > 0 else policy.delay(self._chance.random())
            if not self._leaving:
                await asyncio.sleep(delay)

    async def _hold(self) -> bool:
        """Hold one connection until it ends; return whether there was one."""
        self._ended = asyncio.Event()
        ended, self._close_code = self._ended, ABNORMAL_CLOSE
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                url = await self._url()
                socket = await open_socket(
                    url, lambda text: self._on_text(ended, text), lambda code: self._end(ended, code)
                )
        except (OSError, TimeoutError, ServerUnreachable):
            return False
        if self._leaving:
            socket.abort()
            return True
        self._socket = socket
        self._heard_at = self._ping_at = time.monotonic()
        await ended.wait()
        return True

    async def _url(self) -> str:
        query = {"token": await self._owner.token(), "userid": self.name.user_id}
        if self.conversation_id is not None:
            query["conversation_id"] = self.conversation_id
        position = self._position if self.name.keeps_position else None
        if position is not None:
            query["last_event_id"] = position
        self._journal.write(Opened(at=time.time(), last_event_id=position))
        return f"{self._ws_url}/ws?{urlencode(query)}"

    def _end(self, ended: asyncio.Event, code: int, *, by_client: bool = False) -> None:
        """The socket is over; what it still tells is not heard."""
        if ended.is_set():
            return
        ended.set()
        self._socket, self._attached, self._close_code = None, False, code
        self._journal.write(Closed(at=time.time(), code=code, by_client=by_client))

    def vanish(self, seconds: float) -> None:
        """Be gone without a word, for some seconds."""
        self._away_until = time.monotonic() + seconds
        self._abort()

    def _abort(self) -> None:
        socket = self._socket
        if socket is not None:
            self._end(self._ended, ABNORMAL_CLOSE, by_client=True)
            socket.abort()

    def read_slowly(self, seconds: float) -> None:
        """Read only a moment every half second, for some seconds."""
        self._slow_until = time.monotonic() + seconds
        if self._socket is not None:
            self._socket.pause_reading()

    def leave(self) -> None:
        """Close in order, for good."""
        self._leaving = True
        if self._socket is not None:
            self._socket.resume_reading()
            self._socket.leave()

    def close(self) -> None:
        """Close the file; the device has left."""
        self._abort()
        self._journal.close()

    # What it is told

    def _on_text(self, ended: asyncio.Event, text: bytes) -> None:
        if ended.is_set():
            return
        self._heard_at = time.monotonic()
        self._journal.told(text)
        frame = _frames.decode(text)
        if frame.type == "connection":
            self._on_connection(frame)
        elif frame.id is not None and frame.type in ("ack", "echo", "error"):
            self._on_answer(frame)
        if frame.event_id is not None:
            self._position = frame.event_id
        if frame.message_id is not None and frame.type in ("response", "error"):
            self.seen.add(frame.message_id)
        self._owner.told(self, frame)

    def _on_connection(self, frame: Frame) -> None:
        self._attached = True
        self.features = frame.features or []
        self.conversation_id = frame.conversation_id
        if frame.recovered is False and self.on_lost_position is not None:
            self.on_lost_position(self)
        for pending in self._pending.values():
            pending.due = 0.0

    def _on_answer(self, frame: Frame) -> None:
        pending = self._pending.get(frame.id or "")
        if pending is None:
            return
        if frame.type == "error" and frame.temporary:
            pending.due = time.monotonic() + (frame.retry_after or RESEND_SECONDS)
        else:
            del self._pending[frame.id or ""]

    def read(self, rows: list[Row]) -> None:
        """Note what the history had."""
        self._journal.write(Read(at=time.time(), rows=rows))
        self.seen.update(row.message_id for row in rows if row.ended)

    # What it sends

    def send(self, frame: dict[str, Any]) -> None:
        """Send a frame with an `id`, now or as soon as there is a connection, again until it is answered."""
        wire = _encoder.encode(frame)
        self._wires.append(wire)
        self._pending[frame["id"]] = _Pending(wire, 0.0)
        self.tick()

    def resend_all(self) -> None:
        """Send again what was sent lately, answered or not."""
        if self._attached:
            for wire in self._wires:
                self._write(wire, again=True)

    def tick(self) -> None:
        """Send what is due, ping, read a moment if it is a slow reader, leave a socket that nothing comes from."""
        now = time.monotonic()
        socket = self._socket
        if socket is None:
            return
        if self._slow_until:
            self._read_a_moment(socket, now)
        elif now - self._heard_at > _SILENT_SECONDS:
            self._abort()
            return
        if not self._attached:
            return
        if now >= self._ping_at:
            self._ping_at = now + _PING_SECONDS
            socket.send(b'{"type":"ping"}')
        for pending in self._pending.values():
            if pending.due <= now:
                pending.due = now + RESEND_SECONDS
                pending.times += 1
                self._write(pending.wire, again=pending.times > 1)

    def _read_a_moment(self, socket: BareSocket, now: float) -> None:
        socket.resume_reading()
        if now < self._slow_until:
            asyncio.get_running_loop().call_later(_SLOW_READ_SECONDS / 10, self._pause_again, socket)
        else:
            self._slow_until, self._heard_at = 0.0, now

    def _pause_again(self, socket: BareSocket) -> None:
        if self._slow_until and socket is self._socket:
            socket.pause_reading()

    def _write(self, wire: bytes, *, again: bool) -> None:
        if self._socket is not None:
            self._journal.write(Sent(at=time.time(), frame=_frames.decode(wire), again=again))
            self._socket.send(wire)
