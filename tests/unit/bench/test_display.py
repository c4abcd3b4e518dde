"""The live display: on a terminal only, and what it says there."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.support.bench_reports import second

from duologue.bench.display import Display


def shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with Display(console, "duologue bench messages") as display:
        display.begin("100 messages/s")
        display.second([second(1.0), second(2.0, delta_delay_p50=4.0, delta_delay_p99=90.0)])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        "starting the system",
        "100 messages/s",
        "200, 100 a second",
        "p50 5.0 ms, p99 20.0 ms in the last second",
        "p50 4.0 ms, p99 90.0 ms",
        "duologue 40 %, load 8 %",
    ],
)
def test_display_on_a_terminal_tells_how_it_goes(words: str) -> None:
    assert words in shown(terminal=True)


def test_display_elsewhere_prints_nothing() -> None:
    assert not shown(terminal=False).strip()
