"""Conversations with a past, made straight in the store: to send ten thousand messages would take too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.clock import wall_clock
from duologue.domain.ids import DEFAULT_TENANT, new_id
from duologue.store.conversations import default_conversation
from duologue.store.database import run_once
from duologue.store.schema import conversations, messages
from duologue.store.users import ensure_user

_BATCH: Final = 2000
_GAP_MS: Final = 1000
_QUESTION: Final = "What did we say about the rivers of the north, and which of them was the longest?"
_ANSWER: Final = "We said that they are long, cold and slow, and that nobody had measured all of them to their end."


def give_past(database_url: str, names: Sequence[str], count: int) -> list[str]:
    """Give users a default conversation with so many messages, half of them replies; return the conversations' ids.

    Args:
        database_url: of the system, which may run: nobody of these users may be connected.
        names: of users, made now if they were never seen.
        count: of messages, user's and replies together.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    return [run_once(database_url, lambda conn, name=name: _give_past(conn, name, count)) for name in names]  # type: ignore[misc]


def _give_past(conn: Connection, name: str, count: int) -> str:
    now = wall_clock()
    user = ensure_user(conn, DEFAULT_TENANT, name, "external", now)
    if user is None:
        raise AssertionError(f"{name} was deleted")
    conversation = default_conversation(conn, user, None, now)
    rows: list[dict[str, Any]] = []
    for pair in range(count // 2):
        rows += _exchange(user.uid, conversation.id, pair, now - (count // 2 - pair) * _GAP_MS)
        if len(rows) >= _BATCH:
            conn.execute(messages.insert(), rows)
            rows = []
    if rows:
        conn.execute(messages.insert(), rows)
    conn.execute(
        sa.update(conversations)
        .where(conversations.c.id == conversation.id)
        .values(next_position=count // 2 + 1, next_turn=count // 2 + 1, last_activity_at=now)
    )
    return conversation.id


def _exchange(uid: str, conversation_id: str, pair: int, at: int) -> Iterator[dict[str, Any]]:
    """Yield a message and its reply, as the store has them when they have ended."""
    question, reply = new_id(), new_id()
    both = {
        "tenant": DEFAULT_TENANT,
        "user_id": uid,
        "conversation_id": conversation_id,
        "position": pair + 1,
        "correlation_id": question,
        "topic": "past",
        "partition": 0,
        "offset": pair,
        "submitted_at": at,
        "created_at": at,
        "updated_at": at,
    }
    more = {"generation": 0, "reply_to": None, "turn": None, "attempt": 0, "client_id": question, "completed_at": None}
    yield {
        **both,
        **more,
        "id": question,
        "role": "user",
        "state": "stored",
        "published": False,
        "content": f"{_QUESTION} ({pair})",
    }
    more = {
        "generation": 1,
        "reply_to": question,
        "turn": pair + 1,
        "attempt": 1,
        "client_id": None,
        "completed_at": at,
    }
    yield {**both, **more, "id": reply, "role": "assistant", "state": "complete", "published": True, "content": _ANSWER}
