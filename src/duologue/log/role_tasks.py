"""The tasks of one run of a role: it waits for them, and the first that fails ends the run with its own error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


class RoleTasks:
    """Tasks beside the body of `role_tasks`."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str | None = None) -> asyncio.Task[None]:
        """Run something beside the rest."""
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._ending:
            task.cancel()
        return task

    def cancel(self) -> None:
        """Ask everything that runs to end, and what is spawned from now on."""
        self._ending = True
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def role_tasks() -> AsyncIterator[RoleTasks]:
    """Yield tasks that are cancelled when the body is through, and awaited.

    Raises:
        Exception: the first error of the body or of a task, as it was raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = RoleTasks(group)
            yield tasks
            tasks.cancel()
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
