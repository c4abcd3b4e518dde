"""The message-relay: from an outcome on the log to the user's stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from duologue.config import Settings
from duologue.delivery.applier import OrderedApplier
from duologue.delivery.stream import Applied, DurableFrame, UserStreams
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.errors import RecordUnreadable
from duologue.domain.ids import UserKey
from duologue.domain.records import RESPONSES_TOPIC, OutcomeRecord, decode_outcome
from duologue.engines.redis import RedisCommandError
from duologue.log.committer import Delivery, Holding
from duologue.log.dead_letters import DeadLetterBox, unprocessed
from duologue.log.intake import Intake
from duologue.log.port import Log, LogRecord, Partition
from duologue.log.role_tasks import RoleTasks, role_tasks
from duologue.message_relay.backlog import Backlog
from duologue.message_relay.frames import outcome_frame
from duologue.observability.metrics import RECORDS_RELAYED
from duologue.store.database import Database
from duologue.store.dead_letters import DeadLetter, keep_dead_letter

_log = structlog.get_logger(__name__)

GROUP: Final = "message-relay"
_CATCH_UP_SECONDS: Final = 2.0


class MessageRelay:
    """The role. `run` works until it is cancelled, which is like a crash, or drained."""

    name: Final = "message-relay"

    def __init__(
        self, *, log: Log, database: Database, streams: UserStreams, settings: Settings, clock: Clock = wall_clock
    ) -> None:
        self._database = database
        self._clock = clock
        self._applier = OrderedApplier(streams, on_poison=self._on_poison)
        self._box = DeadLetterBox(log.producer, self._keep)
        self._intake = Intake(
            log,
            topic=RESPONSES_TOPIC,
            group=GROUP,
            handler=self,
            max_undone=settings.max_pending_messages,
            max_undone_bytes=settings.max_pending_bytes,
            check_store=database.check,
        )
        self._backlog: Backlog[tuple[Delivery, OutcomeRecord]] = Backlog()
        self._refusals: dict[tuple[str, int], str] = {}
        self._tasks: RoleTasks | None = None

    @property
    def assigned(self) -> bool:
        """Whether it owns a part of the log."""
        return self._intake.assigned

    @property
    def pending(self) -> int:
        """Records taken from the log whose work is not done."""
        return self._intake.undone

    async def run(self) -> None:
        """Relay outcomes until `drain` has come to its end.

        Raises:
            ConsumerRefused: another message-relay owns this log, and it allows one only.
        """
        async with self._applier, role_tasks() as self._tasks:
            await self._intake.run()

    async def drain(self, seconds: float) -> None:
        """Apply what is on the log, at most for `seconds`, commit, and make `run` return.

        What workers finished a moment ago is relayed too: where no other relay takes over, users need not wait for it.
        """
        try:
            async with asyncio.timeout(seconds):
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(_CATCH_UP_SECONDS, seconds / 2)):
                        await self._intake.caught_up()
                self._intake.stop()
                await self._intake.idle()
        except TimeoutError:
            _log.warning("drain_incomplete", pending=self.pending)
        self._intake.finish()

    async def accept(self, deliveries: Sequence[Delivery]) -> None:
        """Submit a batch's outcomes, in order for each user (Handler)."""
        for delivery in deliveries:
            try:
                record = decode_outcome(delivery.record.value)
            except RecordUnreadable as error:
                self._bury(delivery, str(error), "unreadable")
                continue
            place = delivery.record
            if self._backlog.admit(place.partition, place.offset, record.user, (delivery, record)):
                self._submit(delivery, record)

    async def leaving(self, holdings: Sequence[Holding]) -> None:
        """What is on its way to Redis may be applied by the next owner again: a repeat, and dropped (Handler)."""
        self.lost(holdings)

    def lost(self, holdings: Sequence[Holding]) -> None:
        """Hold nothing of these back any longer (Handler)."""
        for holding in holdings:
            self._release(self._backlog.drop(holding.partition))

    def committed(self, partition: Partition, offset: int) -> None:
        """Let through what waited for a commit (Handler)."""
        self._release(self._backlog.committed(partition, offset))

    def _release(self, items: Sequence[tuple[Delivery, OutcomeRecord]]) -> None:
        for delivery, record in items:
            if delivery.held:
                self._submit(delivery, record)

    def _submit(self, delivery: Delivery, record: OutcomeRecord) -> None:
        frame = outcome_frame(record)
        future = self._applier.submit(record.user, frame)
        future.add_done_callback(partial(self._on_applied, delivery, frame))

    def _on_applied(self, delivery: Delivery, frame: DurableFrame, future: asyncio.Future[Applied]) -> None:
        if future.cancelled():  # the relay ends; the next owner reads the record again
            return
        if future.result().fate == "poisoned":
            error = self._refusals.pop((frame.message_id, frame.attempt), "Redis refuses the frame")
            self._bury(delivery, error, "refused_by_redis")
            return
        if future.result().fate == "applied":
            RECORDS_RELAYED.labels(frame.kind).inc()
        delivery.done()

    async def _on_poison(self, user: UserKey, frame: DurableFrame, error: RedisCommandError) -> None:
        self._refusals[frame.message_id, frame.attempt] = str(error)

    def _bury(self, delivery: Delivery, error: str, cause: str) -> None:
        if delivery.held and self._tasks is not None:
            self._tasks.spawn(self._box.bury(delivery, error, cause))

    async def _keep(self, record: LogRecord, error: str, cause: str) -> None:
        letter = DeadLetter(**unprocessed(record, error=error, cause=cause, at=self._clock()))
        await self._database.write(keep_dead_letter, letter)
