"""What the mock tells about itself: counts, and what they cost."""

from __future__ import annotations

import time
from typing import Final

import msgspec

_BUSY_SHARE: Final = 0.7


class MockStats(msgspec.Struct):
    """Counts since the start or the last reset. `GET /stats` shows them with the figures of `Cost`."""

    requests: int = 0
    """Completions asked for, those that were refused included."""
    in_flight: int = 0
    """Replies under way now, those that went silent included."""
    completed: int = 0
    abandoned: int = 0
    """Replies whose client closed before their end."""
    refused: int = 0
    """Answered with 429 or 500 because a rate says so."""
    unreadable: int = 0
    """Answered with 400."""
    cut: int = 0
    silent: int = 0
    pieces: int = 0
    """Tokens sent: a chunk each if the reply streams."""
    contents: dict[str, int] = {}
    """How often each content was asked, with `record`."""


class Cost(msgspec.Struct, frozen=True):
    """What the mock itself has used since the start or the last reset; a figure of nothing is None."""

    seconds: float
    cpu_seconds: float
    cpu_us_per_request: float | None
    cpu_us_per_piece: float | None
    cpu_share: float
    """Of one core."""

    def told(self, stats: MockStats) -> str:
        """Return the figures in words, one line, and a warning if it was near what one process can do."""
        words = (
            f"{stats.requests} requests, {stats.pieces} pieces in {self.seconds:.1f} s: {self.cpu_seconds:.2f} s CPU"
        )
        words += f", {self.cpu_us_per_request:.1f} µs a request" if self.cpu_us_per_request is not None else ""
        words += f", {self.cpu_us_per_piece:.1f} µs a piece" if self.cpu_us_per_piece is not None else ""
        words += f", {self.cpu_share:.1%} of one core"
        if self.cpu_share > _BUSY_SHARE:
            words += "\nThe model server was near its own end: take a second one, or fewer requests."
        return words


class Meter:
    """Measures wall-clock and CPU time of this process from its making on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu_before = time.process_time()

    def cost(self, stats: MockStats) -> Cost:
        """Return what was used so far, all of it, also divided by what was done."""
        seconds = time.perf_counter() - self._began
        cpu = time.process_time() - self._cpu_before
        return Cost(
            seconds=round(seconds, 6),
            cpu_seconds=round(cpu, 6),
            cpu_us_per_request=round(cpu * 1e6 / stats.requests, 3) if stats.requests else None,
            cpu_us_per_piece=round(cpu * 1e6 / stats.pieces, 3) if stats.pieces else None,
            cpu_share=round(cpu / seconds, 6) if seconds else 0.0,
        )
