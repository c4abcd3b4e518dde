"""The live display of a run: how long it goes, what was sent and answered, how late, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from duologue.bench.report.model import Second

_SHOWN_SECONDS: Final = 5


class Display:
    """Shown while a run lasts, if the console is a terminal; it leaves nothing behind."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._words = "starting the system"
        self._seconds: Sequence[Second] = ()
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, words: str) -> None:
        """A part of the run begins."""
        self._words, self._seconds = words, ()
        self._show()

    def second(self, seconds: Sequence[Second]) -> None:
        """A second of a step has passed: those so far."""
        self._seconds = seconds
        self._show()

    def _show(self) -> None:
        if self._live is not None:
            elapsed = time.monotonic() - self._began
            head = Text(f"{self._title}: {self._words}, {elapsed:.0f} s", style="bold")
            self._live.update(Group(head, *([_table(self._seconds)] if self._seconds else [])), refresh=True)


def _table(seconds: Sequence[Second]) -> Table:
    last, recent = seconds[-1], seconds[-_SHOWN_SECONDS:]
    table = Table(show_header=False, box=None)
    table.add_row("sent", f"{sum(s.sent for s in seconds)}, {_mean([s.sent for s in recent]):.0f} a second")
    table.add_row("answered", f"{sum(s.answered for s in seconds)}, {_mean([s.answered for s in recent]):.0f} a second")
    table.add_row("in flight", str(last.in_flight))
    table.add_row("first token", _words(last.first_token_p50, last.first_token_p99))
    if last.delta_delay_p50 is not None:
        table.add_row("delay of a delta", _words(last.delta_delay_p50, last.delta_delay_p99))
    cpu = ", ".join(f"{name} {share:.0f} %" for name, share in last.cpu_percent.items())
    table.add_row("CPU of a core", cpu)
    return table


def _words(p50: float | None, p99: float | None) -> str:
    return "" if p50 is None or p99 is None else f"p50 {p50:.1f} ms, p99 {p99:.1f} ms in the last second"


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)
