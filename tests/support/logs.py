"""What tests of the log share: a log under test, a listener that remembers, and reading with a deadline."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from duologue.domain.errors import LogUnavailable, OwnershipLost
from duologue.log.port import Log, LogConsumer, LogRecord, Partition

DEADLINE_SECONDS = 20.0


class Engine(Protocol):
    """The server below a log: what tests do to it."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(frozen=True)
class LogUnderTest:
    """An adapter as the contract sees it.

    `open` opens a client of its own, as another process would; `open_successor` one that knows every other to be dead
    and takes its partitions over.
    """

    open: Callable[[], AbstractAsyncContextManager[Log]]
    open_successor: Callable[[], AbstractAsyncContextManager[Log]]
    engine: Engine
    append_timeout_seconds: float
    one_consumer_only: bool


class Listener:
    """Remembers what it heard, in order; checks that calls do not overlap."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Sequence[Partition]]] = []
        self.lost = asyncio.Event()
        self.on_leaving: Callable[[], Any] | None = None
        self._busy = False

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.heard]

    async def on_assigned(self, partitions: Sequence[Partition]) -> None:
        await self._hear("assigned", partitions)

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        await self._hear("revoked", partitions)
        if self.on_leaving is not None:
            await self.on_leaving()

    async def on_lost(self, partitions: Sequence[Partition]) -> None:
        await self._hear("lost", partitions)
        self.lost.set()

    async def _hear(self, event: str, partitions: Sequence[Partition]) -> None:
        assert not self._busy, "calls overlap"
        self._busy = True
        await asyncio.sleep(0)
        self.heard.append((event, partitions))
        self._busy = False


@asynccontextmanager
async def reading(
    log: Log, topic: str, *, group: str = "group", listener: Listener | None = None
) -> AsyncIterator[LogConsumer]:
    """Open a consumer whose listener nobody looks at, unless one is given."""
    async with log.consumer(topic=topic, group=group, listener=listener or Listener()) as consumer:
        yield consumer


async def read(consumer: LogConsumer, count: int, *, at_once: int = 1000) -> list[LogRecord]:
    """Return the next `count` records; patient with a log that is away for a while."""
    records: list[LogRecord] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(records) < count:
            try:
                records += await consumer.poll(min(at_once, count - len(records)), 1.0)
            except LogUnavailable:
                await asyncio.sleep(0.02)
    return records


async def append_until_acknowledged(log: Log, topic: str, key: str, value: bytes) -> None:
    """Append a record to a log that may be away for a while."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await log.producer.append(topic, key, value, {})
            except LogUnavailable:
                await asyncio.sleep(0.02)


async def poll_until_lost(consumer: LogConsumer) -> None:
    """Poll, patient with a log that is away, until another may own the partitions; drop what is read meanwhile."""
    while True:
        try:
            await consumer.poll(10, 0.5)
        except LogUnavailable:
            await asyncio.sleep(0.1)
        except OwnershipLost:
            return


async def until_ready(log: Log) -> None:
    """Wait for a log to answer a check: it is looked at anew a moment after it has come back."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await log.check()
            except LogUnavailable:
                await asyncio.sleep(0.02)


def ends(records: Sequence[LogRecord]) -> Mapping[Partition, int]:
    """Return what to commit once all these are done."""
    return {record.partition: record.offset + 1 for record in records}


def by_key(records: Sequence[LogRecord]) -> dict[str, list[bytes]]:
    """Return each key's values in the order read."""
    values: dict[str, list[bytes]] = defaultdict(list)
    for record in records:
        values[record.key].append(record.value)
    return dict(values)
