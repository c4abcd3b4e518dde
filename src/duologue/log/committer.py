"""What a consumer has read, what of it is done, and telling the log so: contiguous, and not for every record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from duologue.domain.errors import LogUnavailable, OwnershipLost
from duologue.log.port import LogConsumer, LogRecord, Partition
from duologue.log.watermark import Watermark

_log = structlog.get_logger(__name__)

COMMIT_INTERVAL_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 0.5


class Holding:
    """One partition for as long as this consumer owns it. Gained again, it is another holding.

    `held` turns False for good when the partition is given up or lost: what is done later is not committed.
    """

    __slots__ = ("_on_done", "_watermark", "end", "held", "partition", "position", "undone", "undone_bytes")

    def __init__(self, partition: Partition, on_done: Callable[[], None]) -> None:
        self.partition = partition
        self.held = True
        self.undone = 0
        self.undone_bytes = 0
        self.position: int | None = None
        self.end = 0  # the offset after the last one that was read
        self._on_done = on_done
        self._watermark = Watermark()

    def read(self, record: LogRecord) -> Delivery:
        """Take a record in; the caller owes it a `done`."""
        self._watermark.read(record.offset)
        if self.position is None:
            self.position = record.offset
        self.end = record.offset + 1
        self.undone += 1
        self.undone_bytes += len(record.value)
        return Delivery(record, self)

    def done(self, record: LogRecord) -> None:
        self._watermark.done(record.offset)
        self.undone -= 1
        self.undone_bytes -= len(record.value)
        self._on_done()

    @property
    def span(self) -> int:
        """Records that were read since the first that is not done: all of them are read again after a crash."""
        return len(self._watermark)

    @property
    def committable(self) -> int | None:
        """The offset to commit; None if nothing has changed since the last commit, or this may no longer commit."""
        return self._watermark.committable if self.held else None

    def committed(self, offset: int) -> None:
        self._watermark.committed(offset)
        self.position = offset


class Delivery:
    """A record in the consumer's hands until it is done. Nobody else is given it while `held`."""

    __slots__ = ("_done", "holding", "record")

    def __init__(self, record: LogRecord, holding: Holding) -> None:
        self.record = record
        self.holding = holding
        self._done = False

    @property
    def held(self) -> bool:
        return self.holding.held

    def done(self) -> None:
        """The record needs no further work. Saying it again changes nothing."""
        if not self._done:
            self._done = True
            self.holding.done(self.record)


class Committer:
    """Commits the positions of a consumer's holdings, all together, at most every `COMMIT_INTERVAL_SECONDS`."""

    def __init__(self, topic: str, *, on_committed: Callable[[Partition, int], None]) -> None:
        self._topic = topic
        self._on_committed = on_committed
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something is done: see whether there is something to commit."""
        self._changed.set()

    async def run(self, consumer: LogConsumer, holdings: Callable[[], Iterable[Holding]]) -> None:
        """Commit until cancelled. That a partition is lost is for the consumer's listener to hear, not for this."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self.commit(consumer, holdings())
            except LogUnavailable as error:
                _log.warning("commit_waits", topic=self._topic, error=str(error))
                self._changed.set()
                await asyncio.sleep(_PAUSE_SECONDS)
            except OwnershipLost as error:
                _log.warning("commit_refused", topic=self._topic, error=str(error))
            await asyncio.sleep(COMMIT_INTERVAL_SECONDS)

    async def commit(self, consumer: LogConsumer, holdings: Iterable[Holding]) -> None:
        """Commit what is done now. Raises LogUnavailable and OwnershipLost, as the log does."""
        ready = [(holding, offset) for holding in holdings if (offset := holding.committable) is not None]
        if not ready:
            return
        await consumer.commit({holding.partition: offset for holding, offset in ready})
        for holding, offset in ready:
            holding.committed(offset)
            self._on_committed(holding.partition, offset)
