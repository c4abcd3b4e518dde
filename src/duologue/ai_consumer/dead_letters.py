"""What is kept of a record that was given up."""

from __future__ import annotations

from duologue.log.dead_letters import storable_record
from duologue.log.port import LogRecord
from duologue.store.dead_letters import DeadLetter
from duologue.store.messages import StoredRequest


def dead_letter(
    record: LogRecord,
    *,
    error: str,
    cause: str,
    tries: int,
    first_at: int,
    last_at: int,
    of: StoredRequest | None = None,
) -> DeadLetter:
    """Return what is kept of a record that was given up; `of` is its message, if it could be read."""
    return DeadLetter(
        **storable_record(record, error),
        cause=cause,
        tries=tries,
        first_at=first_at,
        last_at=last_at,
        tenant=of.tenant if of else None,
        uid=of.uid if of else None,
        message_id=of.message_id if of else None,
    )
