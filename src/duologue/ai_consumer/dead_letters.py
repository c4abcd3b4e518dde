"""What is kept of a record that was given up."""

from __future__ import annotations

from duologue.log.dead_letters import storable_record
from duologue.log.port import LogRecord
from duologue.store.dead_letters import DeadLetter
from duologue.store.messages import StoredRequest


def letter_of_failure(
    record: LogRecord,
    request: StoredRequest,
    *,
    attempt: int,
    error: str,
    cause: str,
    tries: int,
    first_at: int,
    last_at: int,
) -> DeadLetter:
    """Return what is kept of a record whose reply failed, under that attempt, after so many tries at the model."""
    return DeadLetter(
        **storable_record(record, error),
        cause=cause,
        tries=tries,
        first_at=first_at,
        last_at=last_at,
        tenant=request.tenant,
        uid=request.uid,
        message_id=request.message_id,
        conversation_id=request.conversation_id,
        attempt=attempt,
    )
