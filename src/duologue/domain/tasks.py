"""Ending tasks, the ends of futures, and turns in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task, wait until it has ended, and raise what it failed with, if that was no cancellation.

    Awaiting the task itself would not do: whoever suppresses its CancelledError suppresses, once in a while, a
    cancellation of their own that came at the same time, and goes on as if nobody had asked them to end.
    """
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def ignore_end(future: asyncio.Future[Any]) -> None:
    """Take the end of a call on which nothing depends, as its callback: its failure is reported elsewhere."""
    if not future.cancelled():
        future.exception()


async def spread(items: Sequence[T], *, pause_seconds: float, within_seconds: float) -> AsyncIterator[T]:
    """Yield items with a pause between two, which is shorter if all would take longer than `within_seconds`."""
    pause = min(pause_seconds, within_seconds / max(len(items), 1))
    for number, item in enumerate(items):
        if number:
            await asyncio.sleep(pause)
        yield item
