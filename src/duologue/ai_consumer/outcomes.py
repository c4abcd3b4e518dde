"""What the log and the user are told of a message and of its reply's end."""

from __future__ import annotations

from typing import Any

from duologue.delivery.stream import DurableFrame
from duologue.domain.clock import rfc3339
from duologue.domain.records import OutcomeRecord, ReplyCompleted, ReplyFailed
from duologue.protocol.frames import Echo, encode
from duologue.store.messages import StoredRequest
from duologue.store.outcomes import Completion


def outcome_record(request: StoredRequest, completion: Completion) -> OutcomeRecord:
    """Return the record of a stored completion: the same that the store would make of its row."""
    shared: dict[str, Any] = {
        "tenant": request.tenant,
        "user_id": request.user_id,
        "uid": request.uid,
        "reply_id": request.reply_id,
        "message_id": request.message_id,
        "conversation_id": request.conversation_id,
        "attempt": completion.attempt,
        "generation": request.generation,
        "completed_at": completion.completed_at,
        "correlation_id": request.correlation_id,
        "metadata": request.metadata,
    }
    if completion.error is not None:
        error = completion.error
        return ReplyFailed(**shared, reason=error.message, cause=error.code, temporary=error.temporary)
    return ReplyCompleted(
        **shared,
        content=completion.content,
        model=completion.model or "",
        finish_reason=completion.finish_reason or "stop",
        processing_time_ms=completion.processing_time_ms or 0,
        usage=completion.usage,
    )


def echo_frame(request: StoredRequest) -> DurableFrame:
    """Return what every device is told of a user's message."""
    echo = Echo(
        role="user",
        id=request.client_id,
        message_id=request.message_id,
        conversation_id=request.conversation_id,
        content=request.content,
        timestamp=rfc3339(request.submitted_at),
        metadata=request.metadata,
    )
    return DurableFrame("echo", request.message_id, 0, encode(echo))
