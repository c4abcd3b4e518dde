"""The model and the crowd as processes of their own, directed over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from duologue.bench.process import free_port, status_of
from duologue.domain.errors import StartRefused
from duologue.engines.child import child_process

_START_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.02

T = TypeVar("T")


class Tool:
    """A module of this package that serves HTTP on a port, which it keeps when it is started again.

    Args:
        module: run as `python -m`; it takes `--port`.
        arguments: what else it takes.
        log_file: where its output goes.
        probe: the path that it answers when it is up.
    """

    def __init__(self, module: str, arguments: list[str], log_file: Path, probe: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = [sys.executable, "-m", module, "--port", str(self.port), *arguments]
        self._name = module.rpartition(".")[2]
        self._log_file = log_file
        self._probe = probe
        self._context = AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it and return when it answers. Raises StartRefused."""
        with self._log_file.open("ab") as output:
            child = child_process(*self._argv, name=self._name, stdout=output, stderr=output)
            self._process = await self._context.enter_async_context(child)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        async with aiohttp.ClientSession() as session:
            while loop.time() < deadline and self.running:
                if await status_of(session, self.url + self._probe) == 200:
                    return
                await asyncio.sleep(_LOOK_SECONDS)
        raise StartRefused(f"the {self._name} of the run does not start: {self._log_file.read_text()[-2000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self.running:
            os.kill(self._process.pid, number)

    async def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        await self._context.aclose()

    async def aclose(self) -> None:
        """End it in order."""
        self.signal(signal.SIGCONT)
        await self._context.aclose()

    async def post(self, path: str, body: object, kind: type[T], *, seconds: float = 15.0) -> T:
        """Tell it to do something. Raises StartRefused if it does not."""
        return await self._ask("POST", path, kind, seconds, data=msgspec.json.encode(body))

    async def get(self, path: str, kind: type[T]) -> T:
        """Ask it. Raises StartRefused if it does not answer."""
        return await self._ask("GET", path, kind, 15.0)

    async def _ask(self, method: str, path: str, kind: type[T], seconds: float, **options: Any) -> T:
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, self.url + path, **options) as response,
            ):
                response.raise_for_status()
                return msgspec.json.decode(await response.read(), type=kind)
        except (aiohttp.ClientError, TimeoutError) as error:
            tail = self._log_file.read_text(errors="replace")[-2000:]
            raise StartRefused(f"the {self._name} of the run does not answer ({error!r}): {tail}") from error
