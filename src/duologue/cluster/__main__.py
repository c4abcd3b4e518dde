"""`python -m duologue.cluster`: the distributed mode on one machine. `make start-all` and its like call it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from duologue.cluster.local_cluster import LocalCluster, Row
from duologue.cluster.log_follower import follow
from duologue.cluster.programs import Group
from duologue.domain.errors import DuologueError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def start() -> None:
    """Start all of it; what runs already is left alone."""
    _cluster().start(Group.DEPENDENCIES, Group.BACKEND)


@app.command()
def start_dependencies() -> None:
    """Start PostgreSQL, Kafka and Valkey."""
    _cluster().start(Group.DEPENDENCIES)


@app.command()
def start_backend() -> None:
    """Start the roles, the built-in model and nginx."""
    _cluster().start(Group.BACKEND)


@app.command()
def stop() -> None:
    """Stop all of it, the roles first, each with its drain."""
    _cluster().stop()


@app.command()
def restart() -> None:
    """Restart the roles one after the other; the engines run on."""
    _cluster().restart()


@app.command()
def status() -> None:
    """Show what runs and is ready."""
    rows = _cluster().status()
    Console().print(_table(rows) if rows else "The cluster was never started: `make start-all`.")


@app.command()
def logs(service: Annotated[str, typer.Option(help="Of this program only.", envvar="SERVICE")] = "") -> None:
    """Follow the logs until Ctrl-C."""
    with suppress(KeyboardInterrupt):  # the way to end it
        follow(_cluster().logs, service, Console(soft_wrap=True, highlight=False))


@app.command()
def clean(force: Annotated[bool, typer.Option("--force", help="Do not ask.", envvar="FORCE")] = False) -> None:
    """Stop it and remove its data."""
    cluster = _cluster()
    if not force and not typer.confirm(f"Remove all data of the cluster in {cluster.folder}?"):
        raise typer.Exit(1)
    cluster.clean()


def _cluster() -> LocalCluster:
    return LocalCluster(Path.cwd(), typer.echo, os.environ)


def _table(rows: list[Row]) -> Table:
    table = Table("name", "state", "pid", "uptime", "port", "ready", box=None, pad_edge=False)
    for row in rows:
        style = "" if row.ready else "yellow"
        ports = ", ".join(map(str, row.ports))
        table.add_row(
            row.name, row.state, str(row.pid or ""), _duration(row), ports, "yes" if row.ready else "no", style=style
        )
    return table


def _duration(row: Row) -> str:
    if not row.pid:
        return ""
    minutes, seconds = divmod(row.uptime_seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def main() -> None:
    """Run the command; what is refused is told in words, with exit code 1."""
    try:
        app()
    except DuologueError as error:
        typer.secho(f"duologue: {error}", err=True, fg="red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
