"""Stopping replies that are not being written here: those that wait, and those that another worker has begun."""

from __future__ import annotations

import structlog

from duologue.ai_consumer.completer import Completer
from duologue.ai_consumer.outcomes import outcome_record
from duologue.ai_consumer.request import Request
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import Clock
from duologue.domain.errors import RedisUnavailable
from duologue.domain.records import OutcomeRecord
from duologue.log.until_done import until_done
from duologue.observability.metrics import REPLIES
from duologue.store.database import Database
from duologue.store.messages import StoredRequest
from duologue.store.outcomes import Completion
from duologue.store.stops import Seized, stop_unwritten

_log = structlog.get_logger(__name__)


class Stops:
    """Gives a reply that is to end, and that this worker does not write, its outcome (rule Stop)."""

    def __init__(
        self, database: Database, streams: UserStreams, completer: Completer, *, owner: str, clock: Clock
    ) -> None:
        self._database = database
        self._streams = streams
        self._completer = completer
        self._owner = owner
        self._clock = clock

    async def stop(self, request: Request, stored: StoredRequest, *, seize: bool) -> OutcomeRecord | None:
        """End a reply that waits empty, and with `seize` one that somebody else has begun with what is written of it.

        Returns:
            The outcome to publish; None if this has stopped nothing. An outcome that was there before is published in
            its turn, by others.
        """
        stopped = await until_done(
            lambda: self._database.write(stop_unwritten, stored.reply_id, self._owner, self._clock(), seize=seize),
            what="stop_unwritten",
        )
        if isinstance(stopped, Seized):
            stopped = await self._complete(request, stored, stopped.attempt)
        if stopped is not None:
            REPLIES.labels("stopped").inc()
            _log.info(
                "reply_stopped",
                correlation_id=stored.correlation_id,
                message_id=stored.message_id,
                attempt=stopped.attempt,
            )
        return stopped

    async def text_of(self, request: Request) -> str:
        """Return what is written of a reply that another worker has begun; "" if that is lost."""
        try:
            live = await self._streams.live_text(request.user, request.message_id)
        except RedisUnavailable as error:
            _log.warning("live_text_unknown", message_id=request.message_id, error=str(error))
            return ""
        # The text of the answer that is replaced may still stand there until its end was relayed.
        return live.text if live is not None and live.attempt > request.replaces else ""

    async def _complete(self, request: Request, stored: StoredRequest, attempt: int) -> OutcomeRecord | None:
        now = self._clock()
        completion = Completion(
            reply_id=stored.reply_id,
            attempt=attempt,
            state="stopped",
            completed_at=now,
            content=await self.text_of(request),
            model=stored.model,
            finish_reason="stopped",
            processing_time_ms=max(0, now - stored.submitted_at),
        )
        return outcome_record(stored, completion) if await self._completer.complete(completion) else None
