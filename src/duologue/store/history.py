"""What was said, in pages: of one conversation, and whatever has changed for a user."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.ids import UserKey
from duologue.domain.records import Usage
from duologue.store.cursors import Place, decode_cursor, encode_cursor
from duologue.store.outcomes import ReplyError
from duologue.store.schema import messages, users

MessageState: TypeAlias = Literal["complete", "queued", "generating", "failed", "stopped"]

OVERLAP_MS: Final = 30_000
"""How far back a reading of changes begins: a transaction takes its time up to 10 s before others can see it, and
clocks of machines differ."""


class MessageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A user's message or one version of a reply, as its user may see it.

    A reply names what it answers in `reply_to`; until it has ended its content is empty. Times are milliseconds since
    the Unix epoch; `created_at` of a user's message is when the edge took it.
    """

    id: str
    conversation_id: str
    role: Literal["user", "assistant"]
    content: str
    state: MessageState
    reply_to: str | None
    position: int
    generation: int
    attempt: int
    client_id: str | None
    metadata: dict[str, Any] | None
    model: str | None
    finish_reason: str | None
    usage: Usage | None
    error: ReplyError | None
    processing_time_ms: int | None
    created_at: int
    updated_at: int
    completed_at: int | None


class MessagePage(msgspec.Struct, frozen=True):
    """Some messages of a conversation, the oldest first. `next_cursor` is the `before` of the page that comes before
    this one, None if there is none."""

    items: list[MessageRow]
    next_cursor: str | None


class ChangedPage(msgspec.Struct, frozen=True):
    """Some messages in the order of their last change. `next_cursor` is what to read `after`, always there;
    `previous_cursor` what to read `before`, None at the beginning."""

    items: list[MessageRow]
    next_cursor: str
    previous_cursor: str | None = None


_ROWS: Final = sa.select(
    messages.c.id,
    messages.c.conversation_id,
    messages.c.role,
    messages.c.content,
    messages.c.state,
    messages.c.reply_to,
    messages.c.position,
    messages.c.generation,
    messages.c.attempt,
    messages.c.client_id,
    messages.c.metadata,
    messages.c.model,
    messages.c.finish_reason,
    messages.c.usage,
    messages.c.error,
    messages.c.processing_time_ms,
    messages.c.submitted_at,
    messages.c.created_at,
    messages.c.updated_at,
    messages.c.completed_at,
).where(messages.c.user_id == sa.bindparam("uid"))

_IN_CONVERSATION: Final = _ROWS.where(messages.c.conversation_id == sa.bindparam("conversation_id"))
_NEWEST_SAID: Final = _IN_CONVERSATION.order_by(messages.c.position.desc(), messages.c.generation.desc()).limit(
    sa.bindparam("limit")
)
_SAID_BEFORE: Final = _NEWEST_SAID.where(
    sa.tuple_(messages.c.position, messages.c.generation)
    < sa.tuple_(sa.bindparam("position", type_=sa.Integer), sa.bindparam("generation", type_=sa.Integer))
)
_PLACE_SAID: Final = sa.select(messages.c.position, messages.c.generation).where(
    messages.c.id == sa.bindparam("id"), messages.c.conversation_id == sa.bindparam("conversation_id")
)

_CHANGE: Final = sa.tuple_(messages.c.updated_at, messages.c.id)
_PLACE: Final = sa.tuple_(sa.bindparam("at", type_=sa.BigInteger), sa.bindparam("id", type_=sa.Text))
_CHANGED_AFTER: Final = (
    _ROWS.where(_CHANGE > _PLACE).order_by(messages.c.updated_at, messages.c.id).limit(sa.bindparam("limit"))
)
_CHANGED_BEFORE: Final = (
    _ROWS.where(_CHANGE < _PLACE)
    .order_by(messages.c.updated_at.desc(), messages.c.id.desc())
    .limit(sa.bindparam("limit"))
)
_END: Final = Place(2**62)

_SAID_BEFORE_TIME: Final = (
    sa.select(messages.c.id)
    .join(users, users.c.id == messages.c.user_id)
    .where(
        users.c.tenant == sa.bindparam("tenant"),
        users.c.userid == sa.bindparam("user_id"),
        users.c.deleted_at.is_(None),
        messages.c.updated_at < sa.bindparam("at"),
    )
    .limit(1)
)


def said_before(conn: Connection, user: UserKey, at: int) -> bool:
    """Tell whether a user had said anything before a time, in milliseconds since the Unix epoch, by the store's rows:
    a user's message does not change once it is stored."""
    values = {"tenant": user.tenant, "user_id": user.user_id, "at": at}
    return conn.execute(_SAID_BEFORE_TIME, values).first() is not None


def conversation_messages(
    conn: Connection, uid: str, conversation_id: str, before: str | None = None, limit: int = 50
) -> MessagePage:
    """Return the newest messages of a user's conversation, or those before the message `before`, oldest first.

    The page is empty for another's conversation, and for a `before` that is not in this one.
    """
    values: dict[str, Any] = {"uid": uid, "conversation_id": conversation_id, "limit": limit + 1}
    statement = _NEWEST_SAID
    if before is not None:
        place = conn.execute(_PLACE_SAID, {"id": before, "conversation_id": conversation_id}).first()
        if place is None:
            return MessagePage([], None)
        statement = _SAID_BEFORE
        values |= {"position": place[0], "generation": place[1]}
    rows = conn.execute(statement, values).mappings().all()
    items = [_message(row) for row in reversed(rows[:limit])]
    return MessagePage(items, items[0].id if len(rows) > limit else None)


def changed_messages(
    conn: Connection, uid: str, *, after: str | None = None, before: str | None = None, limit: int = 50, now: int
) -> ChangedPage:
    """Return what is new or changed across a user's conversations, in the order of the changes.

    Args:
        uid: the user's row id.
        after: the cursor of an earlier page: what changed since. None: the newest page.
        before: only without `after`: a `previous_cursor`, for the page before that one.
        limit: rows at most.
        now: milliseconds since the Unix epoch.

    Raises:
        Rejected: a cursor is none of ours.
    """
    if after is not None:
        return _changed_after(conn, uid, decode_cursor(after), limit, now)
    place = decode_cursor(before) if before else _END
    rows = (
        conn.execute(_CHANGED_BEFORE, {"uid": uid, "at": place.at, "id": place.id, "limit": limit + 1}).mappings().all()
    )
    items = [_message(row) for row in reversed(rows[:limit])]
    previous = encode_cursor(Place(items[0].updated_at, items[0].id)) if len(rows) > limit else None
    return ChangedPage(items, encode_cursor(_settled(now)), previous)


def _changed_after(conn: Connection, uid: str, place: Place, limit: int, now: int) -> ChangedPage:
    """Walk from `place` to the end, page by page. Within a walk every page continues exactly where the last one
    stopped, or rows of one busy half-minute would come again and again; a walk that has come to its end begins the
    next one 30 s before its own first page was read: a change that was not to be seen by then carries a later time."""
    rows = (
        conn.execute(_CHANGED_AFTER, {"uid": uid, "at": place.at, "id": place.id, "limit": limit + 1}).mappings().all()
    )
    items = [_message(row) for row in rows[:limit]]
    settled_at = place.settled_at or _settled(now).at
    if len(rows) > limit:
        return ChangedPage(items, encode_cursor(Place(items[-1].updated_at, items[-1].id, settled_at)))
    return ChangedPage(items, encode_cursor(Place(settled_at)))


def _settled(now: int) -> Place:
    return Place(now - OVERLAP_MS)


def _message(row: sa.RowMapping) -> MessageRow:
    values: dict[str, Any] = dict(row)
    submitted_at = values.pop("submitted_at")
    if values["role"] == "user":
        values |= {"state": "complete", "created_at": submitted_at}
    values["usage"] = msgspec.convert(values["usage"], Usage | None)
    values["error"] = msgspec.convert(values["error"], ReplyError | None)
    return MessageRow(**values)
