"""The model server beside a load: started for a system of its own, or a running one that is set and set back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import msgspec

from duologue.bench.load.recorder import ModelTimes
from duologue.bench.mock_llm import MockConfig
from duologue.domain.errors import StartRefused
from duologue.engines.child import child_process

_START_SECONDS: Final = 20.0


class ModelServer:
    """A `duologue mock-llm` at a URL without path."""

    def __init__(self, url: str, pid: int | None = None) -> None:
        self.url = url
        self.pid = pid
        """Its process, if it is one of ours."""
        self.config = MockConfig()

    async def configure(self, changes: Mapping[str, Any]) -> MockConfig:
        """Change settings, by the names of `MockConfig`, and return what they were before. Raises StartRefused."""
        before = await self._post({})
        self.config = await self._post(changes)
        return before

    async def set_back(self, config: MockConfig) -> None:
        """Set all of them. Raises StartRefused."""
        self.config = await self._post(msgspec.to_builtins(config))

    def times(self) -> ModelTimes:
        """Return what it takes by itself, as it is set."""
        first = self.config.ttft_ms / 1000
        between = (self.config.tokens - 1) / self.config.tps if self.config.tps else 0.0
        return ModelTimes(first_token=first, whole_reply=first + between)

    async def _post(self, changes: Mapping[str, Any]) -> MockConfig:
        try:
            async with aiohttp.ClientSession() as http, http.post(f"{self.url}/config", json=changes) as response:
                response.raise_for_status()
                return msgspec.json.decode(await response.read(), type=MockConfig)
        except (aiohttp.ClientError, msgspec.MsgspecError, ValueError) as error:
            raise StartRefused(f"{self.url} is no `duologue mock-llm` that can be set: {error}") from error


@asynccontextmanager
async def own_model(port: int) -> AsyncIterator[ModelServer]:
    """Run a model server on a port until the context ends. Raises StartRefused."""
    argv = [sys.executable, "-m", "duologue.cli", "mock-llm", "--port", str(port)]
    async with child_process(*argv, name="model", stdout=asyncio.subprocess.DEVNULL) as process:
        server = ModelServer(f"http://127.0.0.1:{port}", process.pid)
        await _until_up(server.url)
        yield server


async def _until_up(url: str) -> None:
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(_START_SECONDS):
            while True:
                try:
                    async with http.get(f"{url}/health"):
                        return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.01)
    except TimeoutError:
        raise StartRefused(f"the model server is not up within {_START_SECONDS:g} s") from None
