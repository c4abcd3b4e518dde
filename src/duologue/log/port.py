"""The durable log as the roles see it. Adapters: `valkey_streams` and, for many machines, `kafka`.

What every adapter guarantees (`tests/contract/test_log.py` runs against each):
- `append` returns once the record is durable; records of one producer with one key are read in the order of the calls.
- A consumer reads each partition in offset order, from the last commit. What was read and not committed is read again
  by the next owner. A commit never moves back.
- A partition has one owner at a time. A listener is told of every partition gained, given up and lost.
- Key, value and headers come out as they went in, byte by byte; the log never judges a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

import msgspec


class Partition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    number: int


class LogRecord(msgspec.Struct, frozen=True):
    """A record as it was read. `offset` grows within a partition; `timestamp` is milliseconds since the Unix epoch."""

    partition: Partition
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    timestamp: int


class LogProducer(Protocol):
    """Appends records."""

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        """Append a record and return once it is durable.

        The order of calls is the order on the log for one key, also of calls that do not wait for each other: a call
        takes its place before its first suspension.

        Raises:
            LogUnavailable: no acknowledgement came in time. The record may still turn out to be on the log.
        """
        ...


class PartitionListener(Protocol):
    """Hears of a consumer's partitions. Calls never overlap, and none runs while `poll` hands out records."""

    async def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """These are owned from now on; their records follow from the last commit."""
        ...

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """These will have another owner once this returns: the last chance to commit. It must return within 1 s."""
        ...

    async def on_lost(self, partitions: Sequence[Partition]) -> None:
        """These may have another owner already: stop their work, commit nothing."""
        ...


class LogConsumer(Protocol):
    """Reads a topic for one consumer group."""

    async def poll(self, max_records: int, timeout_seconds: float) -> Sequence[LogRecord]:
        """Return records as soon as there are some, at most `max_records`; none after `timeout_seconds`.

        Raises:
            LogUnavailable: the log cannot be reached; call again after a pause.
            OwnershipLost: every partition was lost (the listener has heard); the consumer is to be opened again.
        """
        ...

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Set where the next owner of each partition begins: the offset after the last one that is done.

        Raises:
            LogUnavailable: the log cannot be reached; what is not committed is read again.
            OwnershipLost: the partition has another owner; nothing was committed.
        """
        ...

    async def unread(self) -> Mapping[Partition, int]:
        """Return the partitions held that have records which `poll` has not handed out, and where they end now.

        That is the offset after the last one. The log is asked: that a `poll` returned nothing tells only that nothing
        had come by then.

        Raises:
            LogUnavailable: the log cannot be reached.
            OwnershipLost: see `poll`.
        """
        ...

    def pause(self, partition: Partition) -> None:
        """Stop reading a partition while keeping it."""
        ...

    def resume(self, partition: Partition) -> None:
        """Read a paused partition again, from where it stopped."""
        ...


class Log(Protocol):
    """A log, open."""

    @property
    def producer(self) -> LogProducer: ...

    def consumer(
        self, *, topic: str, group: str, listener: PartitionListener
    ) -> AbstractAsyncContextManager[LogConsumer]:
        """Open a consumer. Leaving the context gives its partitions up (the listener hears of it as revoked).

        Raises, on entering:
            ConsumerRefused: the adapter allows one consumer only, and there is one.
            LogUnavailable: the log cannot be reached.
        """
        ...

    def partition_of(self, topic: str, key: str) -> int:
        """Return the number of the partition in which records with this key are. Takes microseconds."""
        ...

    async def check(self) -> None:
        """Return if the log answers.

        Raises:
            LogUnavailable: it does not.
        """
        ...
