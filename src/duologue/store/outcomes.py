"""How replies end: stored once, by the attempt that holds, and then published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.records import OutcomeRecord, ReplyCompleted, ReplyFailed, Usage
from duologue.store.dead_letters import DeadLetter, insert_dead_letters
from duologue.store.dialect import record_set, to_json
from duologue.store.prepared import Prepared, is_one_of
from duologue.store.schema import messages, users

Outcome: TypeAlias = Literal["complete", "failed", "stopped"]


class ReplyError(msgspec.Struct, frozen=True):
    """Why a reply failed: a short code, words for the user, and whether another try may succeed."""

    code: str
    message: str
    temporary: bool


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a reply as its worker saw it. `completed_at` is milliseconds since the Unix epoch."""

    reply_id: str
    attempt: int
    state: Outcome
    completed_at: int
    content: str = ""
    model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    error: ReplyError | None = None
    processing_time_ms: int | None = None


_HELD: Final = Prepared(
    sa.select(messages.c.id, messages.c.attempt).where(
        is_one_of(messages.c.id),
        messages.c.state == sa.literal_column("'generating'"),
    )
)


_ENDED: Final = {
    "outcome": messages.c.state,
    "text": messages.c.content,
    "model_used": messages.c.model,
    "reason": messages.c.finish_reason,
    "tokens": messages.c.usage,
    "failure": messages.c.error,
    "took_ms": messages.c.processing_time_ms,
    "ended_at": messages.c.completed_at,
}
"""What the end of a reply sets, by the names in `_values`: a parameter must not be named as the column that it sets."""


def _ended(value: Callable[[str], Any]) -> dict[str, Any]:
    """Return what the end of a reply sets; `value` gives a completion's values by their names."""
    told = {column.name: value(name) for name, column in _ENDED.items()}
    return told | {"leaving_until": None, "updated_at": sa.bindparam("now")}


_COMPLETE: Final = Prepared(
    sa.update(messages).where(messages.c.id == sa.bindparam("reply_id")).values(_ended(sa.bindparam))
)

_mark = sa.update(messages).where(is_one_of(messages.c.id)).values(published=True)
_PUBLISHED: Final = Prepared(_mark)

# The same in one statement, for PostgreSQL. The reply's row is tested and changed in one go: what another worker
# changes meanwhile is waited for and tested again.
_due = record_set(
    "due",
    "rows",
    {
        "reply_id": messages.c.id.type,
        "held": messages.c.attempt.type,
        **{name: column.type for name, column in _ENDED.items()},
    },
)
_stored = (
    sa.update(messages)
    .where(
        messages.c.id == _due.c.reply_id,
        messages.c.attempt == _due.c.held,
        messages.c.state == sa.literal_column("'generating'"),
    )
    .values(_ended(lambda name: _due.c[name]))
    .returning(messages.c.id)
    .cte("stored")
)
_COMPLETE_AND_MARK: Final = Prepared(sa.select(_stored.c.id).add_cte(_mark.cte("marked")))

_question = messages.alias("question")
_OUTCOMES: Final = (
    sa.select(
        messages.c.id.label("reply_id"),
        messages.c.tenant,
        users.c.userid.label("user_id"),
        messages.c.user_id.label("uid"),
        messages.c.reply_to.label("message_id"),
        messages.c.conversation_id,
        messages.c.attempt,
        messages.c.generation,
        messages.c.completed_at,
        messages.c.correlation_id,
        _question.c.metadata,
        messages.c.state,
        messages.c.content,
        messages.c.model,
        messages.c.finish_reason,
        messages.c.processing_time_ms,
        messages.c.usage,
        messages.c.error,
    )
    .join(_question, _question.c.id == messages.c.reply_to)
    .join(users, users.c.id == messages.c.user_id)
    .where(
        is_one_of(messages.c.id),
        sa.text("messages.state IN ('complete', 'failed', 'stopped')"),
        ~messages.c.published,
    )
    .order_by(messages.c.conversation_id, messages.c.turn)
)


def complete(
    conn: Connection,
    completions: Sequence[Completion],
    published: Sequence[str],
    now: int,
    dead_letters: Sequence[DeadLetter] = (),
) -> set[str]:
    """Store the ends of replies, each only if its attempt still holds, and mark earlier ones as published.

    Args:
        completions: what ended; of two for one reply at most one holds.
        published: replies whose records on `responses` were acknowledged since the last call.
        now: milliseconds since the Unix epoch.
        dead_letters: what was given up with them.

    Returns:
        The ids of the replies whose end was stored. Of the others the attempt no longer holds: they have an outcome,
        or belong to another worker, or were deleted.
    """
    if conn.dialect.name == "postgresql":
        stored = _complete_and_mark(conn, completions, published, now)
    else:
        stored = _complete(conn, completions, now)
        mark_published(conn, published)
    insert_dead_letters(conn, dead_letters)
    return stored


def _complete_and_mark(
    conn: Connection, completions: Sequence[Completion], published: Sequence[str], now: int
) -> set[str]:
    rows = [_values(each) for each in sorted(completions, key=lambda each: each.reply_id)]
    values = {"rows": to_json(rows), "ids": published, "now": now}
    return {row[0] for row in _COMPLETE_AND_MARK.rows(conn, values)}


def _complete(conn: Connection, completions: Sequence[Completion], now: int) -> set[str]:
    if not completions:
        return set()
    held = {row[0]: row[1] for row in _HELD.rows(conn, {"ids": [each.reply_id for each in completions]})}
    holding = [each for each in completions if held.get(each.reply_id) == each.attempt]
    if holding:
        _COMPLETE.run(conn, [_values(each) | {"now": now} for each in holding])
    return {each.reply_id for each in holding}


def _values(each: Completion) -> dict[str, Any]:
    return {
        "reply_id": each.reply_id,
        "held": each.attempt,
        "outcome": each.state,
        "text": each.content,
        "model_used": each.model,
        "reason": each.finish_reason,
        "tokens": each.usage,
        "failure": each.error,
        "took_ms": each.processing_time_ms,
        "ended_at": each.completed_at,
    }


def mark_published(conn: Connection, reply_ids: Sequence[str]) -> None:
    """Remember that the outcomes of these replies are on the log."""
    if reply_ids:
        _PUBLISHED.run(conn, [{"ids": reply_ids}])


def outcome(conn: Connection, reply_ids: Sequence[str]) -> list[OutcomeRecord]:
    """Return the records of these replies that have an outcome and are not published, in the order of their turns."""
    if not reply_ids:
        return []
    return [_record(row) for row in conn.execute(_OUTCOMES, {"ids": reply_ids}).mappings()]


_SHARED: Final = (
    "reply_id",
    "tenant",
    "user_id",
    "uid",
    "message_id",
    "conversation_id",
    "attempt",
    "generation",
    "completed_at",
    "correlation_id",
    "metadata",
)


def _record(row: sa.RowMapping) -> OutcomeRecord:
    shared = {name: row[name] for name in _SHARED}
    if row["state"] == "failed":
        error = msgspec.convert(row["error"], ReplyError)
        return ReplyFailed(**shared, reason=error.message, cause=error.code, temporary=error.temporary)
    return ReplyCompleted(
        **shared,
        content=row["content"],
        model=row["model"] or "",
        finish_reason=row["finish_reason"] or ("stopped" if row["state"] == "stopped" else "stop"),
        processing_time_ms=row["processing_time_ms"] or 0,
        usage=msgspec.convert(row["usage"], Usage | None),
    )
