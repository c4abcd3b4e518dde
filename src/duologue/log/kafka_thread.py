"""Between the event loop and a thread that calls librdkafka."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Calls that a thread leaves for the event loop: one wake-up for all that came since the last, in their order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._waking = False

    def add(self, call: Callable[[], object]) -> None:
        """Leave a call, in the thread."""
        self._calls.append(call)

    def flush(self) -> None:
        """Let the loop make what was left, in the thread."""
        if self._calls and not self._waking and not self._loop.is_closed():
            self._waking = True
            self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Make the calls, in the loop. What is left meanwhile may be made now or by another wake-up."""
        self._waking = False  # first: what is added behind the last one taken must find it so
        calls = self._calls
        while calls:
            calls.popleft()()


def run_in_thread(target: Callable[[], None], *, name: str) -> asyncio.Future[None]:
    """Run something in a thread of its own; the future ends as it does. The thread keeps no process from ending."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def run() -> None:
        failure: Exception | None = None
        try:
            target()
        except Exception as error:  # noqa: BLE001  # the edge of a thread: it is raised where the thread is awaited
            failure = error
        if not loop.is_closed():  # else nobody waits any more
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return ended
