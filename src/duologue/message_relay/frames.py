"""What a reply's end looks like to the user."""

from __future__ import annotations

from duologue.delivery.stream import DurableFrame
from duologue.domain.clock import rfc3339
from duologue.domain.records import OutcomeRecord, ReplyCompleted, ReplyFailed
from duologue.protocol.codes import ErrorCode
from duologue.protocol.frames import Error, Response, Typing, encode


def outcome_frame(record: OutcomeRecord) -> DurableFrame:
    """Return the durable frame for an outcome: a `response`, or an `error` that says why there is none."""
    closing = encode(Typing(role="ai", conversation_id=record.conversation_id, active=False))
    if isinstance(record, ReplyCompleted):
        return DurableFrame("response", record.message_id, record.attempt, encode(_response(record)), closing)
    return DurableFrame("failed", record.message_id, record.attempt, encode(_error(record)), closing)


def _response(record: ReplyCompleted) -> Response:
    return Response(
        role="ai",
        message_id=record.message_id,
        reply_id=record.reply_id,
        conversation_id=record.conversation_id,
        content=record.content,
        userid=record.user_id,
        timestamp=rfc3339(record.completed_at),
        processing_time_ms=record.processing_time_ms,
        model=record.model,
        finish_reason=record.finish_reason,
        attempt=record.attempt,
        generation=record.generation,
        correlation_id=record.correlation_id,
        usage=record.usage,
        metadata=record.metadata,
    )


def _error(record: ReplyFailed) -> Error:
    return Error(
        code=ErrorCode.GENERATION_FAILED,
        message=record.reason,
        userid=record.user_id,
        temporary=record.temporary,
        message_id=record.message_id,
        attempt=record.attempt,
        correlation_id=record.correlation_id,
        metadata=record.metadata,
    )
