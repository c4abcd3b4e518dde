"""`duologue mock-llm` as a process: it starts, tells where it is, answers, ends on a signal and tells what it cost."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

_COMMAND = (sys.executable, "-m", "duologue.cli", "mock-llm")
_DEADLINE = 30.0
_NEVER = {"aiohttp", "alembic", "fastapi", "pydantic_settings", "rich", "sqlalchemy", "structlog", "uvicorn"}
"""What must not be imported by it: it is to start fast."""


@asynccontextmanager
async def _running(*options: str, python: tuple[str, ...] = ()) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *python,
        *_COMMAND[1:],
        *("--port", "0", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(_DEADLINE):
        return (await process.stdout.readline()).decode()


async def _base_url(process: asyncio.subprocess.Process) -> str:
    url = (await _said(process)).split()[-1]
    assert await _said(process) == f"For Duologue: OPENAI_BASE_URL={url}\n"
    return url


async def test_command_serves_until_sigterm_and_tells_what_it_cost() -> None:
    async with _running("--tokens", "3", "--seed", "1", python=("-X", "importtime")) as process:
        url = await _base_url(process)
        root = url.removesuffix("/v1")
        ask = {"model": "gpt-9", "messages": [{"role": "user", "content": "hello"}]}
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}/chat/completions", json=ask) as response:
                assert (await response.json())["usage"]["completion_tokens"] == 3
            async with session.post(f"{root}/config", json={"tokens": 5}) as response:
                assert (await response.json())["tokens"] == 5
            async with session.post(f"{url}/chat/completions", json={**ask, "stream": True}) as response:
                assert (await response.text()).count('"content":"word "') == 5
            async with session.get(f"{root}/stats") as response:
                stats = await response.json()
        assert (stats["requests"], stats["completed"], stats["pieces"]) == (2, 2, 8)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_DEADLINE):
            out, err = await process.communicate()
    assert process.returncode == 0
    assert out.decode().startswith("2 requests, 8 pieces in ")
    assert "of one core" in out.decode()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.decode().splitlines()}
    assert "uvloop" in imported
    assert not imported & _NEVER


async def test_command_with_a_reply_under_way_ends_on_ctrl_c() -> None:
    async with _running("--tps", "1", "--host", "0.0.0.0") as process:
        url = await _base_url(process)
        assert url.startswith("http://127.0.0.1:")
        async with aiohttp.ClientSession() as session:
            ask = {"messages": [], "stream": True}
            async with session.post(f"{url}/chat/completions", json=ask) as response:
                await response.content.readany()
                process.send_signal(signal.SIGINT)
                async with asyncio.timeout(_DEADLINE):
                    out, err = await process.communicate()
    assert process.returncode == 0
    assert out.decode().startswith("1 requests, 1 pieces in ")
    assert not err


def test_command_on_a_port_in_use_says_so_in_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*_COMMAND, "--port", str(port)], capture_output=True, text=True, check=False, timeout=_DEADLINE
        )
    assert done.returncode == 1
    assert not done.stdout
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
