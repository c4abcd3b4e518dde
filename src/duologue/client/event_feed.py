"""Tells what happens on a connection to whoever wants to know: a callback, iterators, waits for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from duologue.client.events import Closed, Event
from duologue.domain.errors import DuologueError

_EVENTS_HELD: Final = 1000


class ConnectionEnded(DuologueError):
    """The connection has ended for good, or the wait for something on it took too long."""


class EventFeed:
    """One connection's events. `on_event` is called first, for each of them."""

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self._on_event = on_event
        self._subscribers: list[asyncio.Queue[Event]] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._ended: str | None = None

    async def publish(self, event: Event) -> None:
        """Tell everybody; a subscriber whose queue is full is waited for."""
        self._tell(event)
        for queue in tuple(self._subscribers):
            await queue.put(event)

    def publish_last(self, event: Closed) -> None:
        """Tell the end without waiting for a reader that does not read: it loses an older event instead."""
        self._tell(event)
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def end(self, why: str) -> None:
        """Fail all waits, now and later: nothing more will happen, because of `why`."""
        self._ended = why
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(ConnectionEnded(why))

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Wait until `condition` holds; it is looked at after each event.

        Raises:
            ConnectionEnded: the connection ended for good, or the time is over.
        """
        if condition():
            return
        if self._ended is not None:
            raise ConnectionEnded(self._ended)
        waiter = (condition, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter[1]
        except TimeoutError:
            raise ConnectionEnded(f"it did not happen within {timeout_seconds} s") from None
        finally:
            self._waiters.remove(waiter)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Iterate over the events from now on, until and with `Closed`."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_EVENTS_HELD)
        self._subscribers.append(queue)
        try:
            yield _until_closed(queue)
        finally:
            self._subscribers.remove(queue)
            # A publisher that waits for room in this queue must not wait for ever.
            while not queue.empty():
                queue.get_nowait()

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        for condition, future in self._waiters:
            if not future.done() and condition():
                future.set_result(None)


async def _until_closed(queue: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    while True:
        event = await queue.get()
        yield event
        if isinstance(event, Closed):
            return
