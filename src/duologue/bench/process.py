"""One of the program's commands as a process of its own, to be loaded, killed, paused and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import aiohttp

from duologue.cluster.ports import free_ports
from duologue.config import Settings
from duologue.domain.errors import StartRefused
from duologue.engines.child import child_process

_START_SECONDS: Final = 120.0
"""It may wait for an engine that is being started itself."""
_GRACE_SECONDS: Final = 40.0
_LOOK_SECONDS: Final = 0.02
_LOG_TAIL: Final = 3000

PATCH: Final = "DUOLOGUE_BENCH_PATCH"
"""In a process' settings here: a module to be imported before the program starts, which changes the program. It is how
a build with a guarantee broken on purpose is run; the program itself knows nothing of it."""


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on right now."""
    return free_ports(1)[0]


class DuologueProcess:
    """`duologue <command>` on a port of its own, which it keeps when it is started again.

    Args:
        command: `up`, or a role.
        log_file: where its output goes.
        environment: its settings beside the port. Those of this process do not reach it.
    """

    def __init__(self, command: str, log_file: Path, environment: Mapping[str, str], port: int | None = None) -> None:
        self.command = command
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}"
        self.log_file = log_file
        self._environment = _without_settings() | {"PORT": str(self.port), "LOG_FORMAT": "json", **environment}
        self._context = AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process id. Raises StartRefused if it was never started."""
        if self._process is None:
            raise StartRefused(f"duologue {self.command} is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start it if it does not run, and return once it is ready.

        Raises:
            StartRefused: it ended, or was not ready within a minute; the message holds the end of its output.
        """
        if not self.running:
            await self.spawn()
        await self.until_ready()

    async def spawn(self) -> None:
        """Start it; it may not be ready when this returns. Raises StartRefused if it runs already."""
        if self.running:
            raise StartRefused(f"duologue {self.command} runs already")
        with self.log_file.open("ab") as output:
            child = child_process(
                *(sys.executable, "-m", "duologue.bench.patched" if PATCH in self._environment else "duologue.cli"),
                self.command,
                name=f"duologue {self.command}",
                grace_seconds=_GRACE_SECONDS,
                stdout=output,
                stderr=output,
                env=self._environment,
            )
            self._process = await self._context.enter_async_context(child)

    async def until_ready(self) -> None:
        """Return once `/ready` says so.

        Raises:
            StartRefused: it ended, or a minute is over.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        async with aiohttp.ClientSession() as session:
            while loop.time() < deadline and self.running:
                if await status_of(session, f"{self.url}/ready") == 200:
                    return
                await asyncio.sleep(_LOOK_SECONDS)
        raise StartRefused(f"duologue {self.command} is not ready:\n{self.output()[-_LOG_TAIL:]}")

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Let it hang: its connections stay open, nothing happens on them."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self.signal(signal.SIGCONT)

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
        await self._context.aclose()
        return code

    async def aclose(self) -> None:
        """End it in order if it runs."""
        await self._context.aclose()


async def status_of(session: aiohttp.ClientSession, url: str) -> int:
    """Return the status that a GET is answered with, 0 if it is not."""
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=3)) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


def _without_settings() -> dict[str, str]:
    settings = {name.upper() for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name.upper() not in settings}
