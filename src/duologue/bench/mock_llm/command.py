"""`duologue mock-llm`: the options, and the server from its start to its signal.

The options are made from `MockConfig`, so that this module is imported whenever the command line is. What only a
running server needs is imported when it runs.
"""

from __future__ import annotations

import asyncio
import signal
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from duologue.bench.mock_llm.config import MockConfig, Setting, configured, settings
from duologue.domain.errors import Rejected


def mock_llm(host: str, port: int, seed: int | None, **changes: Any) -> None:
    """Serve OpenAI's API without a model, for load: replies of set timing, length and faults.

    It runs until Ctrl-C or SIGTERM and then tells what it cost itself. While it runs, GET /stats tells the same and
    POST /config changes what the options set. Exit code 1 if it cannot listen, 2 for options that cannot be.
    """
    import uvloop

    from duologue.open_files import raise_file_limit

    try:
        config = configured(changes)
    except Rejected as error:
        raise typer.BadParameter(str(error)) from error
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config, host, port, seed))


async def _run(config: MockConfig, host: str, port: int, seed: int | None) -> None:
    from duologue.bench.mock_llm.server import serve

    server = await serve(config, host=host, port=port, seed=seed)
    try:
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        typer.echo(f"The model server listens on {server.base_url}")
        typer.echo(f"For Duologue: OPENAI_BASE_URL={server.base_url}")
        await ended.wait()
        typer.echo(server.cost().told(server.stats))
    finally:
        await server.aclose()


def _parameters() -> list[Parameter]:
    own = [
        _parameter("host", str, "127.0.0.1", typer.Option(help="Address to listen on.")),
        _parameter("port", int, 9000, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")),
        _parameter(
            "seed",
            int | None,
            None,
            typer.Option(help="The same seed draws the same for the same requests in the same order."),
        ),
    ]
    return own + [_parameter_of(setting) for setting in settings()]


def _parameter_of(setting: Setting) -> Parameter:
    kind = setting.kind if setting.default is not None else setting.kind | None
    meaning = setting.meaning.replace("`", "")
    option = typer.Option(setting.option, min=setting.least, max=setting.most, help=meaning)
    return _parameter(setting.name, kind, setting.default, option)


def _parameter(name: str, kind: Any, default: object, option: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


mock_llm.__signature__ = Signature(_parameters())  # type: ignore[attr-defined]  # where Typer looks for the options
