"""The load model server as a fixture: a real HTTP provider whose behaviour tests set while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
from msgspec import to_builtins

from duologue.bench.mock_llm import MockConfig


class ModelServer:
    """Talks to a running `duologue mock-llm` over HTTP, as it is another process."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.root}/v1"

    async def configure(self, **changes: Any) -> None:
        """Change how it answers from the next request on; names are those of `MockConfig`."""
        async with aiohttp.ClientSession() as session, session.post(f"{self.root}/config", json=changes) as response:
            response.raise_for_status()

    async def begin_anew(self) -> None:
        """Answer as it does by default, count what it is asked, and forget what was."""
        await self.configure(**to_builtins(MockConfig(record=True)))
        async with aiohttp.ClientSession() as session, session.post(f"{self.root}/reset") as response:
            response.raise_for_status()

    async def stats(self) -> dict[str, Any]:
        """Return its counts."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.root}/stats") as response:
            stats: dict[str, Any] = await response.json()
            return stats

    async def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 20.0) -> dict[str, Any]:
        """Return its counts as soon as they satisfy a condition, asking for it at short intervals.

        Raises:
            TimeoutError: they do not within `seconds`.
        """
        async with asyncio.timeout(seconds):
            while not condition(stats := await self.stats()):  # noqa: ASYNC110  # it is another process
                await asyncio.sleep(0.01)
        return stats
