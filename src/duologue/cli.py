"""The command line: `duologue --help`. Each command imports what it needs, so that a client starts fast."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from duologue import __version__
from duologue.domain.errors import DuologueError, StartRefused
from duologue.lazy_commands import LazyCommands

if TYPE_CHECKING:
    from duologue.bootstrap import RoleName

_ELSEWHERE: Final = {
    "chaos": "duologue.bench.chaos.commands",
    "mock-llm": "duologue.bench.mock_llm.command",
    "dlq": "duologue.dlq.commands",
    "bench": "duologue.bench.commands",
}


class _Program(TyperGroup):
    """The commands of this file, and those that are elsewhere."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands({**self.commands, **_ELSEWHERE})


app = typer.Typer(
    cls=_Program,
    help="Duologue: a self-hosted server for real-time conversations with AI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"duologue {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def up() -> None:
    """Start everything in one process: embedded mode."""
    from duologue.config import load_settings
    from duologue.engines.data_dir import locked_data_dir
    from duologue.listener import listen

    settings = load_settings()
    with locked_data_dir(settings.data_dir) as data_dir, listen(settings.host, settings.port) as listener:
        from duologue.bootstrap import run_embedded  # takes a second, for which clients wait at the open door

        _run(run_embedded(settings, data_dir, listener))


@app.command(name="websocket-server")
def websocket_server() -> None:
    """Hold clients' sockets: one role of many processes."""
    _run_role("websocket-server")


@app.command(name="ai-consumer")
def ai_consumer() -> None:
    """Take messages from the log and answer them: one role of many processes."""
    _run_role("ai-consumer")


@app.command(name="message-relay")
def message_relay() -> None:
    """Bring finished replies from the log to their users: one role of many processes."""
    _run_role("message-relay")


@app.command()
def api() -> None:
    """Serve the HTTP API and the page: one role of many processes."""
    _run_role("api")


@app.command()
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from duologue.bootstrap import migrate_database
    from duologue.config import load_settings

    migrate_database(load_settings(), sql=sql)


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8080",
    user: Annotated[str, typer.Option(help="Your user id; without it a guest name is made and kept.")] = "",
    character: Annotated[str, typer.Option(help="Whom to talk to: a character's slug or id.")] = "",
    conversation: Annotated[str, typer.Option(help="A conversation's id, or `new`.")] = "",
) -> None:
    """Talk to an AI in the terminal. What comes through a pipe is one message; then only its answer is printed."""
    from duologue.chat.terminal import ChatOptions, run_chat

    options = ChatOptions(url=url, user=user or None, character=character or None, conversation=conversation or None)
    raise typer.Exit(asyncio.run(run_chat(options)))


@app.command()
def token(
    operator: Annotated[bool, typer.Option("--operator", help="For an operator: opens dead letters.")] = False,
    name: Annotated[str, typer.Option(help="The operator's name, noted with what is done. Default: yours here.")] = "",
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 365, help="How long it holds.")] = 12.0,
) -> None:
    """Print a token, signed with JWT_SECRET or the key in DATA_DIR. Users get theirs from the API."""
    from duologue.config import load_settings
    from duologue.dlq.access import operator_name, operator_token

    if not operator:
        raise StartRefused("say --operator: users get their tokens from the API, POST /token")
    typer.echo(operator_token(load_settings(), name or operator_name(), lifetime_seconds=int(hours * 3600)))


def _run_role(name: RoleName) -> None:
    from duologue.bootstrap import run_role
    from duologue.config import load_settings

    _run(run_role(name, load_settings()))


def _run(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def main() -> None:
    """Run the command line; what the program refuses is told in words, with exit code 1."""
    try:
        app()
    except DuologueError as error:
        typer.secho(f"duologue: {error}", err=True, fg="red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
