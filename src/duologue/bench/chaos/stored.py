"""What the store has at the end, read from the database itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.bench.chaos.history import Leftover, Question, StoredReply
from duologue.store.database import run_once
from duologue.store.schema import messages, users


class Stored(NamedTuple):
    """User messages, requests for answers, and what should not be there after a quiet time."""

    questions: list[Question]
    replies: list[StoredReply]
    leftovers: list[Leftover]


async def read_store(database_url: str) -> Stored:
    """Read all of it. Raises StoreUnavailable."""
    return await asyncio.to_thread(run_once, database_url, _read)


def _read(conn: Connection) -> Stored:
    m = messages.c
    asked = (
        sa.select(m.id, users.c.userid, m.conversation_id, m.client_id, m.content, m.position)
        .join(users, users.c.id == m.user_id)
        .where(m.generation == 0)
    )
    answers = sa.select(messages).where(m.generation > 0)
    rows = conn.execute(answers).mappings().all()
    return Stored(
        [
            Question(
                message_id=row.id,
                user_id=row.userid,
                conversation_id=row.conversation_id,
                client_id=row.client_id or "",
                content=row.content,
                position=row.position,
            )
            for row in conn.execute(asked)
        ],
        [_reply(row) for row in rows],
        [_claim(row) for row in rows if row["leaving_until"] is not None],
    )


def _reply(row: sa.RowMapping) -> StoredReply:
    return StoredReply(
        reply_id=row["id"],
        message_id=row["reply_to"],
        conversation_id=row["conversation_id"],
        turn=row["turn"],
        generation=row["generation"],
        attempt=row["attempt"],
        takeovers=row["takeovers"],
        state=row["state"],
        content=row["content"],
        published=bool(row["published"]),
        finish_reason=row["finish_reason"],
        error_code=_code(row["error"]),
        completed_at=None if row["completed_at"] is None else row["completed_at"] / 1000,
    )


def _code(error: Any) -> str | None:
    if isinstance(error, str):
        error = json.loads(error)
    return None if error is None else str(error.get("code"))


def _claim(row: sa.RowMapping) -> Leftover:
    return Leftover(kind="claim", where=str(row["id"]), detail=f"{row['state']}, leaving until {row['leaving_until']}")
