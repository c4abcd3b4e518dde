"""`duologue chaos`: plan, run, compare, tell."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Self

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from duologue.bench.chaos.checks import check
from duologue.bench.chaos.history import History
from duologue.bench.chaos.options import ChaosOptions
from duologue.bench.chaos.page import page
from duologue.bench.chaos.plan import Step
from duologue.bench.chaos.report import Report, make_report, print_report
from duologue.bench.chaos.run import Load, run, run_folder
from duologue.bench.chaos.subject import open_subject
from duologue.bench.report_files import write_files
from duologue.open_files import raise_file_limit


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
                seconds=options.lasting_seconds,
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
        if options.report:
            await asyncio.to_thread(_write, report, history, Path(options.report))
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
