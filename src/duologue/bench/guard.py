"""`make bench-check`: whether a message costs more CPU than it did when the committed figures were written.

    python -m duologue.bench.guard           # compares; exit code 1 if something costs over 25 % more
    python -m duologue.bench.guard --write   # writes the figures

CPU seconds mean little by themselves: the same program needs a third more of them when the machine is busy. So each
figure is divided by the CPU time of a fixed piece of work (`calibrate`) that is measured right before and after it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from rich.console import Console

from duologue.bench.calibration import calibrate
from duologue.bench.command import measure
from duologue.bench.options import Messages, Where
from duologue.bench.report.model import Report
from duologue.bench.report_files import as_json
from duologue.domain.errors import DuologueError, StartRefused
from duologue.open_files import raise_file_limit

BASELINE: Final = Path(__file__).with_name("baseline.json")
WORSE: Final = 0.25
"""What a figure may grow by."""

_WATCHED: Final[Sequence[str]] = ("duologue", "valkey")
_ASKED: Final = Messages(rate=100, seconds=30, users=200)


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """CPU of a message by process, as a share of the CPU of one calibration, and at which commit that was."""

    cpu_per_message: dict[str, float]
    rate: float
    commit: str


def baseline_of(report: Report, calibration_seconds: float) -> Baseline:
    """Return what a run has cost. Raises StartRefused: it was not correct, so that its cost means nothing."""
    if not report.is_clean:
        raise StartRefused(f"the run was not correct: {report.breaches}")
    [step] = report.steps
    shares = {
        name: round(step.cpu_ms_per_message[name] / 1000 / calibration_seconds, 6)
        for name in _WATCHED
        if name in step.cpu_ms_per_message
    }
    return Baseline(cpu_per_message=shares, rate=step.offered_per_second, commit=report.commit)


def verdicts(committed: Baseline, now: Baseline) -> Sequence[tuple[str, float, bool]]:
    """Return each process with the relative change of its cost, and whether that is too much.

    Raises:
        StartRefused: they were not measured alike.
    """
    if committed.rate != now.rate or committed.cpu_per_message.keys() != now.cpu_per_message.keys():
        raise StartRefused("the committed figures are of another kind of run: write them anew, make bench-baseline")
    found = []
    for name, before in committed.cpu_per_message.items():
        change = now.cpu_per_message[name] / before - 1 if before else 0.0
        found.append((name, change, change > WORSE))
    return found


def read_baseline(path: Path = BASELINE) -> Baseline:
    """Return the committed figures. Raises StartRefused: there are none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except OSError:
        raise StartRefused(f"{path.name} is not there: write it, make bench-baseline") from None


def _measured(console: Console) -> Baseline:
    before = calibrate()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(measure("messages", _ASKED, Where(), console))
    return baseline_of(report, (before + calibrate()) / 2)


def _tell(console: Console, found: Sequence[tuple[str, float, bool]]) -> None:
    for name, change, too_much in found:
        words = f"too much: {WORSE:.0%} is allowed" if too_much else "well"
        style = "red" if too_much else "green"
        console.print(f"CPU per message, {name}: {change:+.0%} of what is committed, {words}", style=style)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; compare, or write. Return the exit code: 1 if something costs too much, 2 if it cannot be told."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the committed figures")
    chosen, console = parser.parse_args(arguments), Console(highlight=False)
    raise_file_limit()
    try:
        committed: Baseline | None = None if chosen.write else read_baseline()
        now = _measured(console)
        if committed is None:
            BASELINE.write_bytes(as_json(now) + b"\n")
            console.print(f"written to {BASELINE.name}: {_shares(now.cpu_per_message)}")
            return 0
        found = verdicts(committed, now)
    except DuologueError as error:
        Console(stderr=True).print(f"bench-check: {error}", style="red", markup=False, highlight=False)
        return 2
    _tell(console, found)
    return 1 if any(too_much for _, _, too_much in found) else 0


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.4f} calibrations a message" for name, share in shares.items())


if __name__ == "__main__":
    sys.exit(main())
