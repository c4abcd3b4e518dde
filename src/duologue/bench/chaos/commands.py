"""The command `duologue chaos`, made from what `options` declares. What it needs is imported when it runs."""

from __future__ import annotations

import typer

from duologue.bench.chaos.options import ChaosOptions
from duologue.bench.command_line import command, refusing

app = typer.Typer(add_completion=False)


def _chaos(options: ChaosOptions) -> None:
    """Try to break a system of its own, and count what was lost, doubled, reordered or stuck.

    Exit code 0 if every invariant held, 1 if one did not, 2 if it could not be run.
    """
    from rich.console import Console

    from duologue.bench.chaos.command import chaos as run

    with refusing():
        report = run(options, Console())
    raise typer.Exit(0 if report.is_clean else 1)


app.command(name="chaos")(command(_chaos, ChaosOptions))
