"""`duologue chaos`: plan, run, compare, tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from duologue.bench.chaos.checks import check
from duologue.bench.chaos.history import History
from duologue.bench.chaos.page import page
from duologue.bench.chaos.plan import OVERLAP, Mode, Step, counted, endless
from duologue.bench.chaos.report import Report, make_report, print_report
from duologue.bench.chaos.run import Load, run, run_folder
from duologue.bench.chaos.subject import open_subject
from duologue.bench.report_files import write_files
from duologue.domain.errors import StartRefused
from duologue.open_files import raise_file_limit


@dataclass(frozen=True, kw_only=True)
class ChaosOptions:
    """What is asked for. Without any count of faults they go on for `seconds`."""

    mode: Mode = "embedded"
    seconds: float | None = None
    faults: int = 0
    each: int = 0
    minutes: int = 0
    kills: Mapping[str, int] = field(default_factory=dict)
    overlap: float = OVERLAP
    seed: int = 1
    users: int = 8
    rate: float = 4.0
    report: Path | None = None

    @property
    def is_counted(self) -> bool:
        """Whether the plan is so many faults, not as many as fit into a time."""
        return bool(self.faults or self.each or self.minutes or self.kills)

    def steps(self) -> tuple[Iterable[Step], int | None]:
        """Return the plan, and how many faults it has if that is known. Raises StartRefused."""
        if not self.is_counted:
            return endless(self.seed, self.mode, overlap=self.overlap), None
        plan = counted(
            self.seed,
            self.mode,
            faults=self.faults,
            kills=self.kills,
            each=self.each,
            minutes=self.minutes,
            overlap=self.overlap,
        )
        return plan, len(plan)

    def arguments(self) -> str:
        """Return the command line that runs the same plan again."""
        words = ["duologue chaos", f"--mode {self.mode}", f"--seed {self.seed}"]
        words += [f"--users {self.users}", f"--rate {self.rate:g}"]
        words += [f"--seconds {self.seconds:g}"] if self.seconds is not None else []
        words += [f"--{name} {count}" for name in ("faults", "each", "minutes") if (count := getattr(self, name))]
        words += [f"--overlap {self.overlap:g}"] if self.overlap != OVERLAP else []
        words += ["--kill " + ",".join(f"{name}={count}" for name, count in self.kills.items())] if self.kills else []
        return " ".join(words)


def parse_kills(text: str) -> dict[str, int]:
    """Read `ai-consumer=300,api=100`. Raises StartRefused."""
    kills: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        if not count.isdigit():
            raise StartRefused(f"--kill {part}: what is killed and how often is written as ai-consumer=300")
        kills[name.strip()] = int(count)
    return kills


def chaos(options: ChaosOptions, console: Console) -> Report:
    """Make a run and print its report; with `report`, write it there as JSON and as a page.

    Raises:
        StartRefused: it could not be run.
    """
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_chaos(options, console))


async def _chaos(options: ChaosOptions, console: Console) -> Report:
    steps, total = options.steps()
    load = Load(users=options.users, rate=options.rate, seed=options.seed)
    kept = False
    async with run_folder(lambda: kept) as folder:
        began = time.time()
        with _Bar(console, total) as bar:
            history = await run(
                steps,
                load,
                partial(open_subject, options.mode),
                folder,
                seconds=options.seconds,
                progress=bar,
            )
        breaches = await asyncio.to_thread(check, history)
        report = make_report(
            history,
            breaches,
            seed=options.seed,
            arguments=options.arguments(),
            began=began,
            seconds=time.time() - began,
        )
        print_report(report, console)
        kept = not report.is_clean
        if options.report is not None:
            await asyncio.to_thread(_write, report, history, options.report)
            console.print(f"The report is in {options.report}.", style="dim")
        if kept:
            console.print(f"What clients, model and processes wrote is in {folder}.", style="dim")
    return report


def _write(report: Report, history: History, folder: Path) -> None:
    write_files(report, page(report, history), folder, f"chaos-{report.mode}-{report.seed}")


class _Bar:
    """The progress bar of a run."""

    def __init__(self, console: Console, total: int | None) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        words = TextColumn("faults, {task.fields[answered]} messages answered")
        self._progress = Progress(*columns, words, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._progress.add_task("starting", total=total, answered=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, words: str) -> None:
        self._progress.update(self._task, description=words)

    def step(self, step: Step, done: int) -> None:
        self._progress.update(self._task, description=f"{step.fault} {step.target}", completed=done)

    def answered(self, messages: int) -> None:
        self._progress.update(self._task, answered=messages)
