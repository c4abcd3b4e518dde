"""The ai-consumer: from a message on the log to its outcome on the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from duologue.ai_consumer.answering import Answering
from duologue.ai_consumer.completer import Completer
from duologue.ai_consumer.dispatcher import Dispatcher
from duologue.ai_consumer.leaving import Leaving
from duologue.ai_consumer.live_text import Pace
from duologue.ai_consumer.load import LoadFigures
from duologue.ai_consumer.outcomes import echo_frame
from duologue.ai_consumer.publisher import Publisher
from duologue.ai_consumer.queue_notices import QueueNotices
from duologue.ai_consumer.reply import Reply, Writing
from duologue.ai_consumer.request import Request, Requests
from duologue.ai_consumer.service_times import ServiceTimes
from duologue.ai_consumer.stops import Stops
from duologue.ai_consumer.tick import Tick, Ticks
from duologue.ai_consumer.tries import Asking
from duologue.config import Settings
from duologue.delivery.applier import OrderedApplier
from duologue.delivery.load import LoadBoard
from duologue.delivery.stream import DurableFrame, UserStreams
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.errors import LogUnavailable, OwnershipLost, RecordUnreadable
from duologue.domain.ids import UserKey
from duologue.domain.records import (
    INCOMING_TOPIC,
    IncomingRecord,
    MessageSubmitted,
    OutcomeRecord,
    RegenerateRequested,
    StopRequested,
    decode_incoming,
)
from duologue.domain.tasks import ignore_end
from duologue.engines.redis import RedisCommandError
from duologue.llm.choice import ModelChain
from duologue.llm.retry import RetryPolicy
from duologue.log.committer import Delivery, Holding
from duologue.log.dead_letters import DeadLetterBox, unprocessed
from duologue.log.intake import Intake
from duologue.log.port import Log, LogRecord, Partition
from duologue.log.role_tasks import RoleTasks, role_tasks
from duologue.observability.metrics import (
    LOOP_FAILURES,
    PENDING_MESSAGES,
    REPLIES_RUNNING,
)
from duologue.store.database import Database, StoreRefused
from duologue.store.dead_letters import DeadLetter, keep_dead_letter
from duologue.store.messages import Refused, Stored, StoredRequest
from duologue.store.replies import Claimed

_log = structlog.get_logger(__name__)

GROUP: Final = "ai-consumer"
_RECONSIDER_SECONDS: Final = 0.25
_FLUSH_SECONDS: Final = 2.0


class AiConsumer:
    """The role. `run` works until it is cancelled, which is like a crash, or drained."""

    name: Final = "ai-consumer"

    def __init__(
        self,
        *,
        log: Log,
        database: Database,
        streams: UserStreams,
        board: LoadBoard,
        models: ModelChain,
        settings: Settings,
        clock: Clock = wall_clock,
    ) -> None:
        self._database = database
        self._clock = clock
        self._ticks = Ticks(database, settings.server_id, clock)
        self._leaving = Leaving(database, clock, seconds=settings.drain_seconds)
        self._dispatcher: Dispatcher[Request] = Dispatcher(
            max_running=settings.workers, max_running_per_user=settings.user_max_workers
        )
        asking = Asking(
            models=models,
            policy=RetryPolicy(max_tries=settings.model_max_tries, total_seconds=settings.model_retry_seconds),
            pace=Pace(
                interval_ms=settings.delta_interval_ms,
                max_bytes=settings.delta_max_bytes,
                running=lambda: self._dispatcher.running,
            ),
            max_history_tokens=settings.history_max_tokens,
        )
        self._writing = Writing(asking=asking, streams=streams, database=database, clock=clock)
        self._streams = streams
        self._times = ServiceTimes()
        self._notices = QueueNotices(
            self._dispatcher,
            streams,
            self._times,
            slots=settings.workers,
            slots_per_user=settings.user_max_workers,
        )
        self._applier = OrderedApplier(streams, on_poison=self._on_poisoned_echo)
        self._completer = Completer(database, clock)
        self._box = DeadLetterBox(log.producer, self._keep)
        self._stops = Stops(database, streams, self._completer, owner=settings.server_id, clock=clock)
        self._answering = Answering(self._completer, self._stops, clock)
        self._publisher = Publisher(log.producer, self._completer, self._box)
        self._intake = Intake(
            log,
            topic=INCOMING_TOPIC,
            group=GROUP,
            handler=self,
            max_undone=settings.max_pending_messages,
            max_undone_bytes=settings.max_pending_bytes,
            check_store=database.check,
        )
        self._load = LoadFigures(
            board,
            consumer=settings.server_id,
            dispatcher=self._dispatcher,
            times=self._times,
            intake=self._intake,
            arriving=lambda: len(self._inbox),
            slots=settings.workers,
        )
        self._requests = Requests()
        self._to_stop: list[Request] = []
        self._inbox: Sequence[Delivery] = ()
        self._inbox_taken = asyncio.Event()
        self._wake = asyncio.Event()
        self._over = False
        self._tasks: RoleTasks | None = None
        self._handlers: dict[type[IncomingRecord], Callable[[Delivery, Any], Request | None]] = {
            MessageSubmitted: self._on_request,
            StopRequested: self._on_stop,
            RegenerateRequested: self._on_request,
        }

    @property
    def assigned(self) -> bool:
        """Whether it owns a part of the log."""
        return self._intake.assigned

    @property
    def pending(self) -> int:
        """Messages taken from the log whose work is not done."""
        return self._intake.undone

    async def run(self) -> None:
        """Answer messages until `drain` has come to its end.

        Raises:
            ConsumerRefused: another ai-consumer owns this log, and it allows one only.
        """
        async with self._applier, role_tasks() as self._tasks:
            self._tasks.spawn(self._start_loop(), name="start-replies")
            self._tasks.spawn(self._completer.run(), name="complete-replies")
            self._tasks.spawn(self._notices.run(), name="queue-notices")
            self._tasks.spawn(self._load.run(), name="report-load")
            await self._intake.run()

    async def drain(self, seconds: float) -> None:
        """Take nothing more, finish what was taken, at most for `seconds`, commit, and make `run` return.

        What is not finished by then is stopped. It keeps its claim, and the next owner takes it over.
        """
        self._intake.stop()
        try:
            async with asyncio.timeout(seconds):
                await self._intake.idle()
        except TimeoutError:
            _log.warning("drain_incomplete", pending=self.pending)
            self._over = True
            self.lost(self._intake.holdings)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._completer.flush()
        self._intake.finish()

    # What the intake hands over

    async def accept(self, deliveries: Sequence[Delivery]) -> None:
        """Take a batch; returns when the one before is on its way (Handler)."""
        while self._inbox:
            self._inbox_taken.clear()
            await self._inbox_taken.wait()
        self._inbox = deliveries
        self._wake.set()

    async def leaving(self, holdings: Sequence[Holding]) -> None:
        """Keep the next owner from the replies that run here, and finish them (rule Owner; Handler)."""
        running = [request for request in self._drop(holdings) if request.reply is not None]
        task = asyncio.current_task()
        if not running or task is None or task.cancelling():  # a cancelled worker finishes nothing
            return
        self._spawn(self._leaving.watch(running))
        await self._leaving.mark(running)

    def lost(self, holdings: Sequence[Holding]) -> None:
        """Stop everything of these (Handler)."""
        for request in self._drop(holdings):
            if request.task is not None:
                request.task.cancel()
            self._leave(request)  # here as well: a task that has not begun yet ends without a word

    def committed(self, partition: Partition, offset: int) -> None:
        """Nothing hangs on a commit here (Handler)."""

    def _drop(self, holdings: Sequence[Holding]) -> list[Request]:
        """Forget what waits, and return what runs."""
        for holding in holdings:
            for request in self._dispatcher.drop(holding.partition):
                if request.task is None:
                    self._forget(request)
        return [request for request in self._requests if request.delivery.holding in holdings]

    # From records to claims

    async def _start_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._turn()

    async def _turn(self) -> None:
        """Store what has come and start what can, all in one transaction."""
        deliveries, self._inbox = self._inbox, ()
        self._inbox_taken.set()
        fresh = [request for delivery in deliveries if (request := self._read(delivery)) is not None]
        for request in fresh:
            self._dispatcher.add(request)
        taken = self._dispatcher.take()
        now = asyncio.get_running_loop().time()
        for request in taken:
            self._times.began(request, request.model, now)
        to_stop, self._to_stop = self._to_stop, []
        if fresh or taken:
            await self._store(fresh, taken)
        for request in to_stop:
            self._stop(request)
        REPLIES_RUNNING.set(self._dispatcher.running)
        PENDING_MESSAGES.set(self._dispatcher.waiting)

    def _read(self, delivery: Delivery) -> Request | None:
        if not delivery.held:
            return None
        try:
            record = decode_incoming(delivery.record.value)
        except RecordUnreadable as error:
            self._spawn(self._box.bury(delivery, str(error), "unreadable"))
            return None
        return self._handlers[type(record)](delivery, record)

    def _on_request(self, delivery: Delivery, record: MessageSubmitted | RegenerateRequested) -> Request | None:
        request = Request(delivery, record)
        known = self._requests.copied_by(request)
        if known is not None and known.delivery.holding is delivery.holding:
            delivery.done()  # a copy; the first one stands before it on the log and is not done
            return None
        self._requests.add(request)
        return request

    def _on_stop(self, delivery: Delivery, record: StopRequested) -> None:
        """Mark what is to end. Whatever is not done stands before this record on the log and holds the commit back, so
        this one is read again with it after a crash: it is done at once."""
        for request in self._requests.of(record.message_id):
            if (request.conversation_id, request.record.uid) == (record.conversation_id, record.uid):
                request.stopping = True
                self._to_stop.append(request)
        delivery.done()

    async def _store(self, fresh: Sequence[Request], taken: Sequence[Request]) -> None:
        try:
            tick = await self._ticks.run(fresh, taken)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is about these messages: which one is found out
            LOOP_FAILURES.labels("store").inc()
            _log.warning("batch_refused", messages=len(fresh), error=str(error), exc_info=_unexpected(error))
            await self._store_singly(fresh, taken)
        else:
            self._settle(fresh, taken, tick)

    async def _store_singly(self, fresh: Sequence[Request], taken: Sequence[Request]) -> None:
        """Store a batch that fails for its data row by row; what fails alone is set aside (rule Poison)."""
        for request in fresh:
            starting = [request] if request in taken else []
            try:
                tick = await self._ticks.run([request], starting)
            except Exception as error:  # noqa: BLE001 - as above; now it is known which
                self._leave(request)
                _log.warning("message_set_aside", correlation_id=request.record.correlation_id, error=str(error))
                self._spawn(self._box.bury(request.delivery, str(error), "refused_by_store"))
            else:
                self._settle([request], starting, tick)
        if waiting := [request for request in taken if request not in fresh]:
            self._settle([], waiting, await self._ticks.run([], waiting))

    def _settle(self, fresh: Sequence[Request], taken: Sequence[Request], tick: Tick) -> None:
        for request, entry in zip(fresh, tick.stored, strict=True):
            self._settle_stored(request, entry)
        for request in taken:
            if self._over or not request.held:  # the next owner takes over what was claimed
                self._leave(request)
            elif request.stored is not None:
                self._settle_taken(request, request.stored, tick)

    def _settle_stored(self, request: Request, entry: Stored) -> None:
        if not request.held:
            self._leave(request)
        elif isinstance(entry, Refused):
            _log.info("request_refused", message_id=entry.message_id, reason=entry.reason)
            self._done(request)
        elif entry.published:
            self._done(request)
        else:
            request.stored = entry
            if not request.replaces:
                request.echo = self._applier.submit(request.user, echo_frame(entry))

    def _settle_taken(self, request: Request, stored: StoredRequest, tick: Tick) -> None:
        claim = tick.claims.get(stored.reply_id)
        standing = tick.standing.get(stored.reply_id)
        if claim is not None:
            request.task = self._spawn(self._answer(request, stored, claim))
        elif (outcome := tick.outcomes.get(stored.reply_id)) is not None:
            request.task = self._spawn(self._publish_again(request, outcome))
        elif standing is not None and standing.state in ("queued", "generating"):
            if request.stopping:
                self._end_early(request, stored, seize=True)
            else:
                self._put_back(request)  # somebody who leaves is finishing it, or a reply before it
        else:
            self._done(request)

    # From a claim to the outcome

    async def _answer(self, request: Request, stored: StoredRequest, claim: Claimed) -> None:
        try:
            answered = await self._write_and_publish(request, stored, claim)
        except asyncio.CancelledError:
            self._leave(request)
            raise
        finally:
            request.reply = request.task = None
        if answered:
            self._forget(request)
        else:
            self._put_back(request)

    async def _write_and_publish(self, request: Request, stored: StoredRequest, claim: Claimed) -> bool:
        """Return False if the reply was fenced. The live text stays open until its outcome is on the log."""
        async with Reply(self._writing, stored, claim) as reply:
            request.reply = reply
            outcome = await self._answering.outcome(request, reply, claim)
            if outcome is None:
                return False
            self._times.ended(request, asyncio.get_running_loop().time())
            if not self._publisher.full:  # else its text, and others, wait in memory: nothing more is begun
                self._vacate(request)
            await self._publisher.publish(request, outcome)
            self._vacate(request)
            return True

    async def _publish_again(self, request: Request, outcome: OutcomeRecord) -> None:
        """A reply that ended before, perhaps elsewhere, and is not marked: the model is not asked again."""
        try:
            await self._publisher.publish(request, outcome)
        finally:
            self._leave(request)

    def _stop(self, request: Request) -> None:
        """End a request early. One that is about to begin sees for itself that it is to stop."""
        if request.reply is not None:
            request.reply.stop()
        elif request.task is None and request.stored is not None and request in self._requests:
            self._end_early(request, request.stored, seize=False)  # what others have begun ends in its turn

    def _end_early(self, request: Request, stored: StoredRequest, *, seize: bool) -> None:
        """Ask the store to end a request that waits or, with `seize`, one whose turn has come. Until it has answered no
        later one of the conversation may begin: if it has ended before, its outcome is to be published first."""
        if not seize:
            self._dispatcher.hold(request)
        request.task = self._spawn(self._stop_unwritten(request, stored, seize=seize))

    async def _stop_unwritten(self, request: Request, stored: StoredRequest, *, seize: bool) -> None:
        try:
            outcome = await self._stops.stop(request, stored, seize=seize)
            if outcome is not None:
                await self._publisher.publish(request, outcome)
        except asyncio.CancelledError:
            self._leave(request)
            raise
        finally:
            request.task = None
        if outcome is None and request.held and self._back_in_line(request, seize=seize):
            self._wake.set()
        else:
            self._leave(request)

    def _back_in_line(self, request: Request, *, seize: bool) -> bool:
        """Let what became of a request that could not be stopped be found out, or ended, in its turn.

        Returns:
            False if it has lost its place.
        """
        if not seize:
            return self._dispatcher.release(request)
        self._put_back(request)
        return True

    def _put_back(self, request: Request) -> None:
        """Somebody else has it, or the one before it, but that need not be the last word: try again in a while."""
        if not request.held:
            self._leave(request)
            return
        self._times.left(request)
        self._dispatcher.defer(request)
        self._spawn(self._reconsider(request))

    async def _reconsider(self, request: Request) -> None:
        """Let a request begin again, from the store, if the partition is still this worker's (rules Owner, Commit).

        Whoever stands in its way may be the rightful owner, of whom this worker has yet to hear: so the log is asked.
        """
        while True:
            await asyncio.sleep(_RECONSIDER_SECONDS)
            try:
                await self._intake.verify(request.partition)
            except OwnershipLost:
                return  # the listener hears of it as well, and drops the request
            except LogUnavailable:
                continue
            self._dispatcher.wake(request)
            self._wake.set()
            return

    # Ends

    def _vacate(self, request: Request) -> None:
        """Let the conversation and others go on; the request itself stays known until it is done."""
        self._times.left(request)
        self._dispatcher.discard(request)
        self._wake.set()

    def _leave(self, request: Request) -> None:
        """This worker has no more to do with a request."""
        self._vacate(request)
        self._forget(request)

    def _done(self, request: Request) -> None:
        """Nothing is to be done for a request: no outcome of it will take it off its user's messages without one."""
        self._leave(request)
        request.delivery.done()
        self._streams.withdraw(request.user, request.message_id).add_done_callback(ignore_end)

    def _forget(self, request: Request) -> None:
        self._requests.forget(request)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise RuntimeError("the ai-consumer is not running")
        return self._tasks.spawn(work)

    async def _keep(self, record: LogRecord, error: str, cause: str) -> None:
        letter = DeadLetter(**unprocessed(record, error=error, cause=cause, at=self._clock()))
        await self._database.write(keep_dead_letter, letter)

    async def _on_poisoned_echo(self, user: UserKey, frame: DurableFrame, error: RedisCommandError) -> None:
        """Redis refuses an echo for its data: the message is answered nevertheless, and this is told to operators."""
        _log.error("echo_refused", tenant=user.tenant, message_id=frame.message_id, error=str(error))


def _unexpected(error: Exception) -> Exception | None:
    return None if isinstance(error, StoreRefused) else error
