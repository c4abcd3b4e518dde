"""From a claimed reply to its stored outcome, whatever happens on the way."""

from __future__ import annotations

from typing import Final

import structlog

from duologue.ai_consumer.completer import Completer
from duologue.ai_consumer.dead_letters import letter_of_failure
from duologue.ai_consumer.outcomes import outcome_record
from duologue.ai_consumer.reply import Reply
from duologue.ai_consumer.request import Request
from duologue.ai_consumer.stops import Stops
from duologue.domain.clock import Clock
from duologue.domain.records import OutcomeRecord
from duologue.observability.metrics import LOOP_FAILURES, REPLIES, REPLY_SECONDS, TAKEOVERS, WAIT_SECONDS
from duologue.store.database import StoreRefused
from duologue.store.dead_letters import DeadLetter
from duologue.store.outcomes import Completion, ReplyError
from duologue.store.replies import Claimed

_log = structlog.get_logger(__name__)

MAX_TAKEOVERS: Final = 5


class Answering:
    """Gives every reply that is not fenced an outcome."""

    def __init__(self, completer: Completer, stops: Stops, clock: Clock) -> None:
        self._completer = completer
        self._stops = stops
        self._clock = clock

    async def outcome(self, request: Request, reply: Reply, claim: Claimed) -> OutcomeRecord | None:
        """Write a reply and store its end.

        Returns:
            The record for the log; None if somebody else's attempt holds.
        """
        WAIT_SECONDS.observe(max(0, self._clock() - reply.request.submitted_at) / 1000)
        if claim.taken_over:
            TAKEOVERS.inc()
        completion = await self._write(request, reply, claim)
        stored = None if completion is None else await self._store(request, reply, completion)
        if stored is None:
            _log.warning("reply_fenced", correlation_id=reply.request.correlation_id, attempt=reply.attempt)
            return None
        self._report(reply, stored)
        return outcome_record(reply.request, stored)

    async def _write(self, request: Request, reply: Reply, claim: Claimed) -> Completion | None:
        if request.stopping:
            return reply.stopped(await self._stops.text_of(request) if claim.taken_over else "")
        if claim.takeovers > MAX_TAKEOVERS:
            return reply.failed(ReplyError("taken_over", "the answer was interrupted too often", temporary=True))
        try:
            return await reply.run()
        except Exception:  # noqa: BLE001 - the edge of this reply: one that crashes is a visible failure
            LOOP_FAILURES.labels("reply").inc()
            _log.exception("reply_crashed", correlation_id=reply.request.correlation_id)
            return reply.failed(ReplyError("internal", "the answer could not be written", temporary=True))

    async def _store(self, request: Request, reply: Reply, completion: Completion) -> Completion | None:
        """Return what was stored: the completion, or that it could not be."""
        try:
            held = await self._completer.complete(completion, _letter(request, reply, completion))
        except StoreRefused as error:
            _log.exception("reply_refused_by_store", correlation_id=reply.request.correlation_id, error=str(error))
            completion = reply.failed(ReplyError("unstorable", "the answer could not be stored", temporary=True))
            held = await self._completer.complete(completion, _letter(request, reply, completion))
        return completion if held else None

    def _report(self, reply: Reply, completion: Completion) -> None:
        since_ms = max(0, completion.completed_at - reply.request.submitted_at)
        REPLIES.labels(completion.state).inc()
        REPLY_SECONDS.observe(since_ms / 1000)
        _log.info(
            "reply_finished",
            correlation_id=reply.request.correlation_id,
            message_id=reply.request.message_id,
            outcome=completion.state,
            attempt=completion.attempt,
            tries=reply.tries,
            model=completion.model,
            since_accepted_ms=since_ms,
            processing_time_ms=completion.processing_time_ms,
        )


def _letter(request: Request, reply: Reply, completion: Completion) -> DeadLetter | None:
    if completion.error is None:
        return None
    return letter_of_failure(
        request.delivery.record,
        reply.request,
        attempt=completion.attempt,
        error=completion.error.message,
        cause=completion.error.code,
        tries=reply.tries,
        first_at=reply.began,
        last_at=completion.completed_at,
    )
