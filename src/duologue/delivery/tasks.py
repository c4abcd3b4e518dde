"""The tasks of one owner: they end when it does, and none fails unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from duologue.observability import metrics

_log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = 1.0


class Tasks:
    """Tasks that are cancelled and awaited by `aclose`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` beside; it handles its own errors."""
        task = asyncio.create_task(work, name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def spawn_loop(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run `step` again and again; it waits for its time itself. An unexpected error is reported and it goes on."""
        self.spawn(self._repeat(step))

    async def joined(self) -> None:
        """Return when no task runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Cancel what runs and await its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Exception:  # noqa: BLE001  # the edge of this loop: reported, and it goes on
                self._report()
                await asyncio.sleep(_PAUSE_SECONDS)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(error)

    def _report(self, error: BaseException | None = None) -> None:
        metrics.LOOP_FAILURES.labels(self._name).inc()
        _log.error("task_failed", loop=self._name, exc_info=error or True)
