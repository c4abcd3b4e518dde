"""Tells a user's stream how far their devices have surely been sent it (rule Cursor).

A frame that was written to a transport may have gone into a dead connection. It counts as sent when the socket has
stayed open a while after, longer than it takes to notice, or when the client closed the socket in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from duologue.delivery.names import EventPosition
from duologue.delivery.stream import UserStreams
from duologue.domain.errors import DuologueError
from duologue.domain.ids import UserKey

_log = structlog.get_logger(__name__)

_TICK_SECONDS: Final = 1.0


class _Write(NamedTuple):
    """The last frame written in a tick, and the end of the tick."""

    until: float
    event: EventPosition


class _Writes:
    """Writes to one socket that do not count yet: one a tick, so their number is bounded by the delay."""

    __slots__ = ("pending", "user")

    def __init__(self, user: UserKey) -> None:
        self.user = user
        self.pending: deque[_Write] = deque()


class Cursors:
    """Advances the cursors of the users whose sockets are here."""

    def __init__(self, streams: UserStreams, *, delay_seconds: float, clock: Callable[[], float]) -> None:
        self._streams = streams
        self._delay = delay_seconds
        self._clock = clock
        self._writes: dict[object, _Writes] = {}
        self._due: dict[UserKey, EventPosition] = {}

    def written(self, socket: object, user: UserKey, event: EventPosition) -> None:
        """A durable frame was written to a socket."""
        writes = self._writes.get(socket)
        if writes is None:
            writes = self._writes[socket] = _Writes(user)
        now = self._clock()
        if writes.pending and now < writes.pending[-1].until:
            writes.pending[-1] = _Write(writes.pending[-1].until, event)
        else:
            writes.pending.append(_Write(now + _TICK_SECONDS, event))

    def closed(self, socket: object, user: UserKey, *, clean: bool) -> None:
        """A socket is closed. If the client did it in order, all that was written counts."""
        writes = self._writes.pop(socket, None)
        if clean and writes is not None:
            self._count(user, writes.pending[-1].event)

    async def tick(self) -> None:
        """After a while: let writes count whose time has come."""
        await asyncio.sleep(_TICK_SECONDS)
        self.count_old()
        await self.flush()

    def count_old(self) -> None:
        """Let writes count that their sockets have survived."""
        horizon = self._clock() - self._delay
        for socket, writes in list(self._writes.items()):
            while writes.pending and writes.pending[0].until <= horizon:
                self._count(writes.user, writes.pending.popleft().event)
            if not writes.pending:
                del self._writes[socket]

    def _count(self, user: UserKey, event: EventPosition) -> None:
        due = self._due.get(user)
        if due is None or due.epoch != event.epoch or due.number < event.number:
            self._due[user] = event

    async def flush(self) -> None:
        """Advance the cursors of all users that have moved on. What fails is due the next time."""
        due, self._due = self._due, {}
        moves = {user: self._streams.advance_cursor(user, event) for user, event in due.items()}
        results = await asyncio.gather(*moves.values(), return_exceptions=True)
        for (user, event), result in zip(due.items(), results, strict=True):
            if isinstance(result, DuologueError):
                self._due.setdefault(user, event)
            elif isinstance(result, BaseException):
                raise result
