"""The loop around a consumer, the same for every role that has one: poll, hand out, commit, pause, own, drain."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog

from duologue.domain.errors import LogUnavailable, OwnershipLost
from duologue.log.committer import Committer, Delivery, Holding
from duologue.log.port import Log, LogConsumer, LogRecord, Partition
from duologue.log.until_done import until_done

_log = structlog.get_logger(__name__)

POLL_RECORDS: Final = 256
MAX_UNDONE_BYTES: Final = 64 * 1024 * 1024
SPAN: Final = 5
RESUMED_AT: Final = 0.75
"""The share of its bounds at which a paused consumer reads on: at the bounds it would turn with every record."""
_POLL_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 0.5
_LEAVE_SECONDS: Final = 0.9
"""For the last words about a partition: the log's adapters are promised an answer within 1 s."""
_LAST_COMMIT_SECONDS: Final = 2.0


class Handler(Protocol):
    """A role's own part."""

    async def accept(self, deliveries: Sequence[Delivery]) -> None:
        """Take charge of records, each of which is to be `done` some time. The next are read when this returns."""
        ...

    async def leaving(self, holdings: Sequence[Holding]) -> None:
        """These go to another owner, who waits for this, 0.9 s at most. Nothing of them will be committed after it."""
        ...

    def lost(self, holdings: Sequence[Holding]) -> None:
        """These may have another owner already: stop their work."""
        ...

    def committed(self, partition: Partition, offset: int) -> None:
        """Everything before `offset` will not be read again."""
        ...


class Intake:
    """Reads one topic for one group and gives the records to a handler, within a bound of records not yet done.

    It is itself the listener of its consumer.
    """

    def __init__(
        self,
        log: Log,
        *,
        topic: str,
        group: str,
        handler: Handler,
        max_undone: int,
        max_undone_bytes: int = MAX_UNDONE_BYTES,
        check_store: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Read `topic` for `group`.

        Args:
            log: where from.
            topic: what to read.
            group: whose position on it.
            handler: takes the records.
            max_undone: records handed out and not done at most, about. Of those that are done behind one that is not,
                `SPAN` times as many.
            max_undone_bytes: what the records handed out and not done weigh at most, about.
            check_store: returns if what is read can be stored; until it first has, nothing is read, and this consumer
                keeps no other from the partitions. Raises Retryable if not.
        """
        self._log = log
        self._topic = topic
        self._group = group
        self._handler = handler
        self._max_undone = max_undone
        self._max_undone_bytes = max_undone_bytes
        self._holdings: dict[Partition, Holding] = {}
        self._paused: set[Partition] = set()
        self._consumer: LogConsumer | None = None
        self._committer = Committer(topic, on_committed=handler.committed)
        self._check_store = check_store
        self._stopped = False
        self._finish = asyncio.Event()
        self._idle = asyncio.Event()
        self._progress = asyncio.Event()

    @property
    def undone(self) -> int:
        """Records handed out and not done, of the partitions held."""
        return sum(holding.undone for holding in self._holdings.values())

    @property
    def owed(self) -> int:
        """About how many records have to be done before it reads on; 0 while it reads."""
        fullness = self._fullness
        return math.ceil(self.undone * (1 - RESUMED_AT / fullness)) if self._paused and fullness > RESUMED_AT else 0

    @property
    def _fullness(self) -> float:
        """How much of the bound that is nearest is taken: 1 or more, and nothing further is read."""
        holdings = self._holdings.values()
        return max(
            self.undone / self._max_undone,
            sum(holding.undone_bytes for holding in holdings) / self._max_undone_bytes,
            sum(holding.span for holding in holdings) / (self._max_undone * SPAN),
        )

    async def unread(self) -> int:
        """Count what is on the log behind what was handed out, of the partitions held.

        Of a partition of which nothing was handed out yet, where it begins is not known: it counts one.

        Raises:
            LogUnavailable: the log cannot be reached.
            OwnershipLost: the partitions are lost.
        """
        ends = await self._unread()
        held = {partition: self._holdings[partition].end for partition in ends if partition in self._holdings}
        return sum(ends[partition] - end if end else 1 for partition, end in held.items())

    @property
    def holdings(self) -> Sequence[Holding]:
        """The partitions that are held."""
        return list(self._holdings.values())

    @property
    def assigned(self) -> bool:
        """Whether any partition is held."""
        return bool(self._holdings)

    async def run(self) -> None:
        """Read until `finish`; the last commit is made before this returns.

        Raises:
            ConsumerRefused: another consumer owns the log, and it allows one only.
        """
        await self._until_storable()
        while not self._finish.is_set():
            try:
                async with self._log.consumer(topic=self._topic, group=self._group, listener=self) as consumer:
                    self._consumer = consumer
                    self._steer()
                    await self._consume(consumer)
            except OwnershipLost as error:
                _log.warning("ownership_lost", topic=self._topic, error=str(error))
            except LogUnavailable as error:
                _log.warning("log_unavailable", topic=self._topic, error=str(error))
            finally:
                self._consumer = None
            await self._pause_unless_finished()

    def stop(self) -> None:
        """Read nothing more. The partitions stay with this consumer, and commits go on."""
        self._stopped = True
        self._steer()
        self._changed()

    async def caught_up(self) -> None:
        """Return when all that was on the log at the call, of the partitions held, is handed out.

        Returns at once while nothing is read.
        """
        ends = await until_done(self._unread, what="find_the_end_of_the_log")
        while self._has_before(ends):
            self._progress.clear()
            await self._progress.wait()

    async def idle(self) -> None:
        """Return when everything that was handed out is done."""
        while self.undone:
            self._idle.clear()
            await self._idle.wait()

    def finish(self) -> None:
        """Make `run` return, after a last commit."""
        self._finish.set()

    async def verify(self, partition: Partition) -> None:
        """Return if this consumer still owns a partition, by committing its position once more.

        Raises:
            LogUnavailable: nobody can tell now.
            OwnershipLost: it does not.
        """
        holding, consumer = self._holdings.get(partition), self._consumer
        if holding is None or consumer is None:
            raise OwnershipLost(f"{partition.topic}/{partition.number} is not held")
        if holding.position is not None:
            await consumer.commit({partition: holding.position})

    async def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Begin a holding for each (PartitionListener)."""
        for partition in partitions:
            self._holdings[partition] = Holding(partition, self._changed)
        self._steer()

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Let the handler mark what it leaves, commit for the last time, and end the holdings (PartitionListener)."""
        going = [self._holdings[partition] for partition in partitions if partition in self._holdings]
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._handler.leaving(going)
                if self._consumer is not None:
                    await self._committer.commit(self._consumer, going)
        except (TimeoutError, LogUnavailable, OwnershipLost) as error:
            _log.warning("leave_incomplete", topic=self._topic, error=str(error) or type(error).__name__)
        finally:
            self._end(going)

    async def on_lost(self, partitions: Sequence[Partition]) -> None:
        """End the holdings at once (PartitionListener)."""
        gone = [self._holdings[partition] for partition in partitions if partition in self._holdings]
        self._end(gone)
        self._handler.lost(gone)

    async def _unread(self) -> Mapping[Partition, int]:
        return {} if self._consumer is None else await self._consumer.unread()

    def _has_before(self, ends: Mapping[Partition, int]) -> bool:
        """Whether a partition that is still held has not been handed out up to its end."""
        holdings = self._holdings
        return any(partition in holdings and holdings[partition].end < end for partition, end in ends.items())

    def _end(self, holdings: Sequence[Holding]) -> None:
        for holding in holdings:
            holding.held = False
            self._paused.discard(holding.partition)
            if self._holdings.get(holding.partition) is holding:
                del self._holdings[holding.partition]
        self._progress.set()
        self._changed()

    async def _until_storable(self) -> None:
        """Wait for the store for the first time: a database that is away later holds up what needs it, no more."""
        if self._check_store is None:
            return
        checked = asyncio.create_task(until_done(self._check_store, what="wait_for_store"), name="wait-for-store")
        finish = asyncio.create_task(self._finish.wait(), name=f"finish-{self._topic}")
        try:
            await asyncio.wait([checked, finish], return_when=asyncio.FIRST_COMPLETED)
            if checked.done():
                checked.result()
                self._check_store = None
        finally:
            checked.cancel()
            finish.cancel()
            await asyncio.gather(checked, finish, return_exceptions=True)

    async def _consume(self, consumer: LogConsumer) -> None:
        commits = asyncio.create_task(
            self._committer.run(consumer, self._holdings.values), name=f"commit-{self._topic}"
        )
        try:
            await self._poll_until_finished(consumer, commits)
        except OwnershipLost:
            await self.on_lost(list(self._holdings))  # whatever the listener has not heard of: nothing is left to mark
            raise
        finally:
            commits.cancel()
            await asyncio.gather(commits, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                await self._committer.commit(consumer, self._holdings.values())

    async def _poll_until_finished(self, consumer: LogConsumer, commits: asyncio.Task[None]) -> None:
        finish = asyncio.create_task(self._finish.wait(), name=f"finish-{self._topic}")
        polls = asyncio.create_task(self._poll_loop(consumer), name=f"poll-{self._topic}")
        try:
            done, _ = await asyncio.wait([finish, polls, commits], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {finish}:
                task.result()  # neither ends but by an error
        finally:
            finish.cancel()
            polls.cancel()
            await asyncio.gather(finish, polls, return_exceptions=True)

    async def _poll_loop(self, consumer: LogConsumer) -> None:
        while True:
            try:
                records = await consumer.poll(POLL_RECORDS, _POLL_SECONDS)
            except LogUnavailable as error:
                _log.warning("poll_waits", topic=self._topic, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if deliveries := self._take(records):
                await self._handler.accept(deliveries)
                self._progress.set()
                self._steer()

    def _take(self, records: Sequence[LogRecord]) -> list[Delivery]:
        holdings = self._holdings
        return [holdings[record.partition].read(record) for record in records if record.partition in holdings]

    def _changed(self) -> None:
        self._committer.changed()
        if self._paused and not self._stopped:
            self._steer()
        if not self._idle.is_set() and not self.undone:
            self._idle.set()

    def _steer(self) -> None:
        """Pause or resume by what is undone; between the two bounds nothing changes, so that they do not alternate."""
        if self._consumer is None:
            return
        fullness = self._fullness
        if self._stopped or fullness >= 1:
            for partition in self._holdings.keys() - self._paused:
                self._consumer.pause(partition)
                self._paused.add(partition)
        elif self._paused and fullness <= RESUMED_AT:
            for partition in self._paused:
                self._consumer.resume(partition)
            self._paused.clear()

    async def _pause_unless_finished(self) -> None:
        """Wait before the consumer is opened again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_SECONDS):
                await self._finish.wait()
