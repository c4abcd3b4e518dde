"""The commands under `duologue bench`, made from what `options` declares. What one needs is imported when it runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from duologue.bench.command_line import command, refusing
from duologue.bench.options import SCENARIOS, Asked, Output, Where

app = typer.Typer(
    help="Measure what Duologue costs on this machine, load and engines included, and whether all of it was correct.",
    no_args_is_help=True,
    add_completion=False,
)

_EXIT: Final = "Exit code 0 if all was correct, 1 if it was not, 2 if it could not be run."


def _run(name: str, asked: Asked, where: Where, output: Output) -> None:
    from duologue.bench.command import bench

    with refusing():
        report = bench(name, asked, where, output)
    raise typer.Exit(0 if report.is_clean else 1)


for _name, _options in SCENARIOS.items():
    app.command(name=_name, help=f"{_options.__doc__}\n\n{_EXIT}")(
        command(partial(_run, _name), _options, Where, Output)
    )


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A report, as `--report` or `--json` writes it.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Also if they were asked for different things.")] = False,
) -> None:
    """Two reports side by side: what changed, and whether that is more than runs differ by themselves.

    Exit code 2 if they cannot be compared.
    """
    from rich.console import Console

    from duologue.bench.report.compare import compared, print_comparison
    from duologue.bench.report.model import read_report

    with refusing():
        print_comparison(compared(read_report(before), read_report(after), anyway=anyway), Console())
