"""Reading a topic of Kafka: the side in the event loop, of which `kafka_reader` is the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import structlog

from duologue.domain.errors import LogUnavailable, OwnershipLost
from duologue.log.kafka_reader import Commit, Reader, Revocation
from duologue.log.kafka_thread import Mailbox, run_in_thread
from duologue.log.port import LogRecord, Partition, PartitionListener
from duologue.observability import metrics

_log = structlog.get_logger(__name__)

_CLOSE_SECONDS: Final = 8.0
"""The listener has 1 s, and librdkafka waits 5 s for the answer to its farewell; for others it may wait without end."""


class KafkaConsumer:
    """A member of a consumer group: a `LogConsumer`, and a context that owns its thread.

    Records and changes of ownership come from the thread in one order, so what was read before a revocation is dropped
    by it. While the listener hears of a change nothing is handed out.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        topic: str,
        prefix: str,
        listener: PartitionListener,
        join_seconds: float,
        ends: Callable[[Sequence[Partition]], Awaitable[Mapping[Partition, tuple[int, int]]]],
    ) -> None:
        """`ends` tells where partitions begin and end now, or raises LogUnavailable."""
        self._loop = asyncio.get_running_loop()
        self._topic = topic
        self._listener = listener
        self._join_seconds = join_seconds
        self._ends = ends
        self._mailbox = Mailbox(self._loop)
        self._reader = Reader(config, topic=topic, prefix=prefix, mailbox=self._mailbox, sink=self)
        self._unread: deque[LogRecord] = deque()
        self._held: dict[Partition, list[LogRecord]] = {}
        self._owned: set[Partition] = set()
        self._committed: dict[Partition, int] = {}
        self._handed_out: dict[Partition, int] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        # As long as the rebalances that one slow call of the listener outlasts: some.
        self._changes: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._unheard = 0
        self._away: str | None = None
        self._lost = False
        self._joined = False
        self._news = asyncio.Event()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._hearing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Join the group; if it takes its time (others give partitions up first), the partitions come later."""
        self._ended = run_in_thread(self._reader.run, name=f"kafka-{self._topic}")
        self._ended.add_done_callback(self._on_ended)
        self._hearing = asyncio.create_task(self._hear_changes(), name=f"kafka-listener-{self._topic}")
        self._hearing.add_done_callback(lambda _: self._news.set())
        try:
            await self._until_joined()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()
        self._raise_failure()

    async def poll(self, max_records: int, timeout_seconds: float) -> Sequence[LogRecord]:
        """Return records as soon as there are some. See the port."""
        deadline = self._loop.time() + timeout_seconds
        while True:
            self._raise_failure()
            if not self._unheard:
                if self._lost:
                    raise OwnershipLost(f"{self._topic} may have another owner")
                if records := self._take(max_records):
                    return records
                if self._away is not None:
                    raise LogUnavailable(self._away)
            if self._loop.time() >= deadline:
                return []
            await self._until_news(deadline)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Set where the next owner begins. See the port."""
        if self._ended.done() or not offsets.keys() <= self._owned:
            raise OwnershipLost(f"{self._topic}: a partition is not this consumer's: nothing was committed")
        if self._away is not None:
            raise LogUnavailable(self._away)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        forward = {partition: max(offset, self._committed.get(partition, 0)) for partition, offset in offsets.items()}
        self._reader.ask(Commit(forward, waiter))
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
        metrics.COMMITS.labels(topic=self._topic).inc()

    async def unread(self) -> Mapping[Partition, int]:
        """Return the partitions with records not handed out, and where they end. See the port."""
        if self._lost or self._ended.done():
            raise OwnershipLost(f"{self._topic} may have another owner")
        if self._away is not None:
            raise LogUnavailable(self._away)
        found = await self._ends(list(self._owned))
        return {
            partition: end
            for partition, (begin, end) in found.items()
            if partition in self._owned and max(begin, self._handed_out.get(partition, begin)) < end
        }

    def forsake(self, topic: str) -> None:
        """Lose everything: the topic, if it is this one's, is another than it was."""
        if topic == self._topic:
            self._reader.forsaken = "it was deleted and made again"

    def pause(self, partition: Partition) -> None:
        """Hand out nothing of a partition until `resume`, and soon read nothing more of it."""
        if partition in self._owned:
            self._reader.paused |= {partition}

    def resume(self, partition: Partition) -> None:
        """Hand out a partition's records again."""
        self._reader.paused -= {partition}
        held = self._held.pop(partition, [])
        self._count_taken(held, -1)
        self._unread.extendleft(reversed(held))
        self._news.set()

    # What the thread leaves in the mailbox

    def take_in(self, records: list[LogRecord], _: int) -> None:
        self._unread.extend(records)
        self._news.set()

    def assigned(self, partitions: Sequence[Partition], begins: Mapping[Partition, int]) -> None:
        self._handed_out.update(begins)
        for partition in partitions:
            self._committed.pop(partition, None)  # since then it had other owners

        async def hear() -> None:
            if not self._lost:
                self._owned.update(partitions)  # not before: it may have to hear yet that they were given up
            if partitions:
                await self._listener.on_assigned(partitions)
            self._joined = True

        self._tell(hear)

    def revoked(self, revocation: Revocation) -> None:
        self._drop(revocation.partitions)

        async def hear() -> None:
            await self._listener.on_revoked(revocation.partitions)
            self._owned.difference_update(revocation.partitions)
            self._reader.ask(revocation)

        self._tell(hear)

    def lost(self, partitions: Sequence[Partition]) -> None:
        self._lost = True
        self._owned.clear()
        self._drop(partitions)

        async def hear() -> None:
            if partitions:
                await self._listener.on_lost(partitions)

        self._tell(hear)

    def away(self, reason: str | None) -> None:
        self._away = None if reason is None else f"Kafka cannot be reached: {reason}"
        if self._away is not None:
            self._fail_waiters(LogUnavailable(f"the position may not be committed: {self._away}"))
        self._news.set()

    def sent(self, commit: Commit) -> None:
        if not commit.waiter.done():
            commit.waiter.set_result(None)

    def committed(self, commit: Commit, error: Exception | None) -> None:
        if error is None:
            self._committed.update(commit.offsets)
        if commit.waiter.done():
            return
        if error is None:
            commit.waiter.set_result(None)
        else:
            commit.waiter.set_exception(error)

    # Within the loop

    def _tell(self, change: Callable[[], Awaitable[None]]) -> None:
        self._unheard += 1
        self._changes.put_nowait(change)

    async def _hear_changes(self) -> None:
        while True:
            change = await self._changes.get()
            await change()
            self._unheard -= 1
            self._news.set()

    def _take(self, max_records: int) -> list[LogRecord]:
        taken: list[LogRecord] = []
        unread, paused = self._unread, self._reader.paused
        while unread and len(taken) < max_records:
            record = unread.popleft()
            if record.partition in paused:
                self._held.setdefault(record.partition, []).append(record)
                self._count_taken([record], 1)
            else:
                taken.append(record)
        self._count_taken(taken, 1)
        self._handed_out.update((record.partition, record.offset + 1) for record in taken)
        return taken

    def _count_taken(self, records: Sequence[LogRecord], sign: int) -> None:
        room = self._reader.room
        room.taken_records += sign * len(records)
        room.taken_bytes += sign * sum(len(record.value) for record in records)

    def _drop(self, partitions: Sequence[Partition]) -> None:
        """Forget what was read of partitions and not handed out: it is read again by the next owner."""
        gone = frozenset(partitions)
        for partition in gone:
            self._committed.pop(partition, None)
            self._handed_out.pop(partition, None)
            self._held.pop(partition, None)
        self._reader.paused -= gone
        dropped = [record for record in self._unread if record.partition in gone]
        self._unread = deque(record for record in self._unread if record.partition not in gone)
        self._count_taken(dropped, 1)

    async def _until_joined(self) -> None:
        deadline = self._loop.time() + self._join_seconds
        while not self._joined and self._loop.time() < deadline:
            self._raise_failure()
            if self._away is not None:
                raise LogUnavailable(self._away)
            await self._until_news(deadline)

    async def _until_news(self, deadline: float) -> None:
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._news.wait()

    async def _end(self) -> None:
        """Leave the group; the listener hears of its partitions as given up.

        A thread that a broker which hangs keeps is left behind: it ends when that goes on, or with the process.
        """
        self._reader.stopping = True
        try:
            await asyncio.wait({self._ended}, timeout=_CLOSE_SECONDS)
        finally:
            if self._hearing is not None:
                self._hearing.cancel()
                await asyncio.wait({self._hearing})
        if not self._ended.done():
            _log.warning("log_consumer_left_behind", topic=self._topic, seconds=_CLOSE_SECONDS)
            if self._owned:
                await self._listener.on_lost(list(self._owned))

    def _on_ended(self, ended: asyncio.Future[None]) -> None:
        if (error := ended.exception()) is not None:
            _log.warning("log_consumer_failed", topic=self._topic, error=str(error))
        self._fail_waiters(OwnershipLost(f"{self._topic}: the consumer has ended"))
        self._news.set()

    def _fail_waiters(self, error: Exception) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _raise_failure(self) -> None:
        """Raise what ended the thread, or the listener's own error."""
        if self._hearing is not None and self._hearing.done() and not self._hearing.cancelled():
            self._hearing.result()
        if self._ended.done():
            self._ended.result()
