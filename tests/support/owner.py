"""A listener that knows what its consumer owns, and tells when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tests.support.logs import Listener

from duologue.log.port import Partition

DEADLINE_SECONDS = 30.0


class Owner(Listener):
    """Knows what it owns, and tells when that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.owned: set[Partition] = set()
        self._changed = asyncio.Event()

    async def on_assigned(self, partitions: Sequence[Partition]) -> None:
        await super().on_assigned(partitions)
        self._set(self.owned | set(partitions))

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        await super().on_revoked(partitions)
        self._set(self.owned - set(partitions))

    async def on_lost(self, partitions: Sequence[Partition]) -> None:
        await super().on_lost(partitions)
        self._set(self.owned - set(partitions))

    async def until(self, condition: Callable[[set[Partition]], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition(self.owned):
                self._changed.clear()
                await self._changed.wait()

    def _set(self, owned: set[Partition]) -> None:
        self.owned = owned
        self._changed.set()
