"""Times are integers: milliseconds since the Unix epoch, in the store, on the log and in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

Clock = Callable[[], int]
"""Returns milliseconds since the Unix epoch. Injected wherever a test sets the time."""


def wall_clock() -> int:
    """Return milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def rfc3339(milliseconds: int) -> str:
    """Return milliseconds since the Unix epoch as RFC 3339 in UTC with milliseconds, ending in `Z`."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_whole_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=64)  # the frames of a moment are of few seconds, and each has its time
def _whole_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}"
