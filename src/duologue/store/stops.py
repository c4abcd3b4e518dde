"""Ending replies before their time (rule Stop)."""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.records import OutcomeRecord
from duologue.store.outcomes import outcome
from duologue.store.replies import ATTEMPTS_BEFORE
from duologue.store.schema import messages


class Seized(msgspec.Struct, frozen=True):
    """A reply that another worker was writing is this one's, to be completed as stopped under this attempt."""

    attempt: int


# Whether it waits is asked by the statement that ends it: a claim that comes first makes it find nothing. It has an
# attempt of its own like every other end, since that is what clients know repeats by.
_CANCEL: Final = (
    sa.update(messages)
    .where(messages.c.id == sa.bindparam("reply_id"), messages.c.state == sa.literal_column("'queued'"))
    .values(
        state="stopped",
        attempt=1 + ATTEMPTS_BEFORE,
        finish_reason="stopped",
        processing_time_ms=0,
        completed_at=sa.bindparam("now"),
        updated_at=sa.bindparam("now"),
    )
    .returning(messages.c.id)
)

# Unlike a claim it asks for no smaller turns, as whoever wrote it has done that, and heeds no handover: the one who
# finishes it in peace is the one to be stopped.
_SEIZE: Final = (
    sa.update(messages)
    .where(messages.c.id == sa.bindparam("reply_id"), messages.c.state == sa.literal_column("'generating'"))
    .values(
        attempt=messages.c.attempt + 1,
        owner=sa.bindparam("by"),
        claimed_at=sa.bindparam("now"),
        leaving_until=None,
        updated_at=sa.bindparam("now"),
    )
    .returning(messages.c.attempt)
)


def stop_unwritten(
    conn: Connection, reply_id: str, owner: str, now: int, *, seize: bool
) -> OutcomeRecord | Seized | None:
    """Stop a reply that this worker does not write.

    Args:
        reply_id: which one; `owner` is this worker's name, for people.
        now: milliseconds since the Unix epoch.
        seize: take it over if another worker has begun it.

    Returns:
        The outcome, empty, of one that nobody had begun, which this call has ended; the right to complete one that
        somebody has begun; else None.
    """
    if conn.scalar(_CANCEL, {"reply_id": reply_id, "now": now}) is not None:
        return outcome(conn, [reply_id])[0]
    attempt: int | None = conn.scalar(_SEIZE, {"reply_id": reply_id, "by": owner, "now": now}) if seize else None
    return None if attempt is None else Seized(attempt)
