"""When messages leave: a Poisson process, which does not wait for answers.

A closed loop sends less as soon as the system slows down, and so hides what users would have waited for (coordinated
omission). Here each message has a time at which it is due, drawn beforehand; a message that leaves late is counted as
waiting since then.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Final

LATE_SECONDS: Final = 0.05
"""A message that leaves later than this after it was due is counted as late."""

_EARLY_SECONDS: Final = 0.001
"""The event loop's timers are in whole milliseconds: one may leave this much before it is due, rather than after."""

_MOST_AT_ONCE: Final = 50
"""After so many overdue ones, what has arrived is read: else their answers seem later than they were."""


def arrivals(rate: float, seconds: float, seed: int | str) -> Iterator[float]:
    """Yield the seconds, counted from the begin, at which something happens `rate` times a second at random."""
    generator = random.Random(seed)  # noqa: S311  # arrivals, not secrets
    due = generator.expovariate(rate) if rate > 0 else seconds
    while due < seconds:
        yield due
        due += generator.expovariate(rate)


async def at_times(times: Iterator[float], act: Callable[[float], None]) -> None:
    """Call `act` at each of these times, counted from now, with the time of `time.perf_counter` at which it was due.

    What is overdue is done at once, so that a system or a generator that was held up meets all of it.
    """
    begin = time.perf_counter()
    since_yield = 0
    for offset in times:
        due = begin + offset
        wait = due - time.perf_counter() - _EARLY_SECONDS
        if wait > 0 or since_yield >= _MOST_AT_ONCE:
            since_yield = 0
            await asyncio.sleep(max(wait, 0))
        since_yield += 1
        act(due)
