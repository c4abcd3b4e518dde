"""`duologue mock-llm`: the options, and the server from its start to its signal.

The options are made from `Listening` and `MockConfig`. What only a running server needs is imported when it runs.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import msgspec
import typer

from duologue.bench.command_line import command
from duologue.bench.fields import means
from duologue.bench.mock_llm.config import MockConfig

app = typer.Typer(add_completion=False)


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """Where the mock is, and how it draws."""

    host: Annotated[str, means("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, means("Port to listen on; 0 takes a free one.", ge=0, le=65_535)] = 9000
    seed: Annotated[int, means("The same seed draws the same for the same requests in the same order.")] | None = None


def _mock_llm(listening: Listening, config: MockConfig) -> None:
    """Serve OpenAI's API without a model, for load: replies of set timing, length and faults.

    It runs until Ctrl-C or SIGTERM and then tells what it cost itself. While it runs, GET /stats tells the same and
    POST /config changes what the options set. Exit code 1 if it cannot listen, 2 for options that cannot be.
    """
    import uvloop

    from duologue.open_files import raise_file_limit

    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config, listening))


app.command(name="mock-llm")(command(_mock_llm, Listening, MockConfig))


async def _run(config: MockConfig, listening: Listening) -> None:
    from duologue.bench.mock_llm.server import serve

    server = await serve(config, host=listening.host, port=listening.port, seed=listening.seed)
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
