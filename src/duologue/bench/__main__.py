"""`python -m duologue.bench`: what Duologue costs on this machine, load and engines included."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from duologue.bench import scenarios
from duologue.domain.errors import DuologueError
from duologue.open_files import raise_file_limit

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)

InMode = Annotated[
    scenarios.Mode, typer.Option("--mode", help="One process, or every role behind nginx on Kafka, Valkey, PostgreSQL.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def messages(
    rate: float = 100,
    seconds: float = 30,
    users: int = 200,
    tokens: int = 8,
    mode: InMode = "embedded",
    as_json: AsJson = False,
) -> None:
    """Short messages at a steady rate: added time to the first token, ack, reply, CPU per message."""
    _report(scenarios.messages(mode=mode, rate=rate, seconds=seconds, users=users, tokens=tokens), as_json)


@app.command()
def sustained(
    start: float = 200,
    step: float = 100,
    seconds: float = 10,
    users: int = 400,
    tokens: int = 8,
    mode: InMode = "embedded",
    as_json: AsJson = False,
) -> None:
    """The highest rate that is answered as it comes."""
    figures = scenarios.sustained(mode=mode, start=start, step=step, seconds=seconds, users=users, tokens=tokens)
    _report(figures, as_json)


@app.command()
def streams(
    count: int = 500,
    tokens_per_second: float = 50,
    seconds: float = 20,
    mode: InMode = "embedded",
    as_json: AsJson = False,
) -> None:
    """Replies that stream at once: how late their pieces arrive."""
    _report(scenarios.streams(mode=mode, count=count, tokens_per_second=tokens_per_second, seconds=seconds), as_json)


@app.command()
def idle(sockets: int = 2000, mode: InMode = "embedded", as_json: AsJson = False) -> None:
    """Sockets that do nothing: memory for each."""
    _report(scenarios.idle(mode=mode, sockets=sockets), as_json)


@app.command()
def restart(users: int = 50, mode: InMode = "embedded", as_json: AsJson = False) -> None:
    """Killed in the middle of replies and started again: how long until they go on."""
    from duologue.bench.restart import restart as scenario  # noqa: PLC0415  # it brings the whole client with it

    _report(scenario(mode=mode, users=users), as_json)


@app.command()
def overload(
    times: float = 10, seconds: float = 60, users: int = 400, mode: InMode = "embedded", as_json: AsJson = False
) -> None:
    """Many times more messages than a slow model sustains: what is refused and how fast, and what it does to memory."""
    from duologue.bench.overload import overload as scenario  # noqa: PLC0415  # as above: only what is asked for

    _report(scenario(mode=mode, times=times, seconds=seconds, users=users), as_json)


def _report(scenario: Any, as_json: bool) -> None:
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(scenario)
    if as_json:
        print(json.dumps(figures, indent=2))  # noqa: T201
        return
    console = Console()
    for number, step in enumerate(figures.pop("steps", []), 1):
        console.print(_table(f"step {number}", step))
    console.print(_table("figures", figures))


def _table(title: str, figures: dict[str, Any]) -> Table:
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        shown = "  ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, shown)
    return table


def main() -> None:
    """Run the command line; what cannot be started is told in words."""
    try:
        app()
    except DuologueError as error:
        Console(stderr=True).print(f"bench: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
