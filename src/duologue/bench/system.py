"""A whole Duologue as a process of its own, to be loaded, killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from duologue.config import Settings
from duologue.domain.errors import StartRefused
from duologue.engines.child import child_process

_START_SECONDS: Final = 30.0


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedSystem:
    """`duologue up` on a port and a data folder of its own. Its output goes to `log_file`."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str], port: int) -> None:
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{port}"
        self.ws_url = f"ws://127.0.0.1:{port}"
        self.log_file = data_dir.with_name(data_dir.name + ".log")
        self._environment = _without_settings() | {
            "PORT": str(port),
            "DATA_DIR": str(data_dir),
            "LOG_FORMAT": "json",
            **environment,
        }
        self._running = AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id of the running system."""
        if self._process is None:
            raise StartRefused("the system is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start and return once it is ready.

        Raises:
            StartRefused: it ended, or was not ready within 30 s; the message holds the end of its output.
        """
        with self.log_file.open("ab") as output:
            argv = (sys.executable, "-m", "duologue.cli", "up")
            child = child_process(
                *argv, name="duologue", grace_seconds=40, stdout=output, stderr=output, env=self._environment
            )
            self._process = await self._running.enter_async_context(child)
        await self._until_ready(self._process)

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        async with aiohttp.ClientSession() as session:
            while loop.time() < deadline and process.returncode is None:
                if await _answers(session, f"{self.url}/ready"):
                    return
                await asyncio.sleep(0.02)
        raise StartRefused(f"duologue up is not ready:\n{self.output()[-3000:]}")

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """End it at once, as a crash would (SIGKILL), and wait for that."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def terminate(self) -> int:
        """Ask it to end (SIGTERM), wait for it, and return its exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end and return its exit code."""
        process = self._process
        code = await process.wait() if process is not None else 0
        await self._running.aclose()
        return code

    async def aclose(self) -> None:
        """End it in order if it runs."""
        await self._running.aclose()


@asynccontextmanager
async def embedded_system(data_dir: Path, environment: Mapping[str, str]) -> AsyncIterator[EmbeddedSystem]:
    """Start an embedded system, ready; it ends with the context.

    Args:
        data_dir: its data; kept afterwards.
        environment: settings beside port and data folder. Those of this process do not reach it.

    Raises:
        StartRefused: it does not start.
    """
    system = EmbeddedSystem(data_dir, environment, free_port())
    try:
        await system.start()
        yield system
    finally:
        await system.aclose()


def _without_settings() -> dict[str, str]:
    settings = {name.upper() for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name.upper() not in settings}


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
