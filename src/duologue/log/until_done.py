"""Repeating what must happen once, however long its engine is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from duologue.domain.errors import Retryable

_log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0


async def until_done(call: Callable[[], Awaitable[T]], *, what: str) -> T:
    """Return what `call` returns, repeating it for as long as it raises Retryable; the pauses grow to 1 s.

    It ends by success, by another error or by cancellation. `what` names the work in the log.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await call()
        except Retryable as error:
            _log.warning("will_repeat", what=what, error=str(error), pause_seconds=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
