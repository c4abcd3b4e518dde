"""Times are integers: milliseconds since the Unix epoch, in the store, on the log and in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], int]
"""Returns milliseconds since the Unix epoch. Injected wherever a test sets the time."""


def wall_clock() -> int:
    """Return milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def rfc3339(milliseconds: int) -> str:
    """Return milliseconds since the Unix epoch as RFC 3339 in UTC with milliseconds, ending in `Z`."""
    moment = datetime.fromtimestamp(milliseconds // 1000, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"
