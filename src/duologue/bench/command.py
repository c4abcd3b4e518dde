"""`duologue bench`: run what was asked, and tell."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop
from rich.console import Console

from duologue.bench.display import Display
from duologue.bench.meter import Meter
from duologue.bench.options import Asked, Output, Where
from duologue.bench.report.model import Report, write_report
from duologue.bench.report.page import page
from duologue.bench.report.terminal import print_report
from duologue.bench.report_files import as_json
from duologue.bench.run import Bench, make_report
from duologue.bench.scenarios import scenario
from duologue.bench.target import open_target
from duologue.open_files import raise_file_limit


def bench(name: str, asked: Asked, where: Where, output: Output) -> Report:
    """Run a scenario, print its report, and write it as JSON and as a page if that is asked for.

    Raises:
        StartRefused: it could not be run.
    """
    raise_file_limit()
    console, live = Console(), Console(stderr=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(measure(name, asked, where, live))
    if output.json:
        sys.stdout.write(as_json(report).decode() + "\n")
    else:
        print_report(report, console)
    if output.report:
        path = write_report(report, Path(output.report), page(report))
        live.print(f"The report is in {path} and beside it as a page.", style="dim", markup=False, highlight=False)
    return report


async def measure(name: str, asked: Asked, where: Where, console: Console) -> Report:
    """Run a scenario and return its report. Raises StartRefused."""
    began = time.time()
    what = scenario(name)
    with Display(console, f"duologue bench {name}") as display:
        async with open_target(where, what.needs(asked)) as target, Meter(target) as meter:
            running = Bench(target, meter, display)
            await what.run(running, asked)
            return make_report(name, asked, where, running, began=began)
