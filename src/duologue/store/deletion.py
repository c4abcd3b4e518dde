"""Deleting what belongs to a user: at once and wholly, but for ids, by which records still on the log are refused.

A deleted message leaves a tombstone; a deleted conversation and a deleted user stay as rows without content. Each
function locks conversations first, as storing does, so that nothing is stored into what is being deleted.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.store.schema import (
    characters,
    conversations,
    dead_letters,
    messages,
    refresh_tokens,
    tombstones,
    users,
)

_EMPTIED: Final[dict[str, Any]] = {"title": None, "settings": {}, "character_id": None}


def delete_message(conn: Connection, uid: str, message_id: str, now: int) -> bool:
    """Delete a user's message and every reply to it. False if the user has no such message."""
    conversation_id = conn.scalar(
        sa.select(messages.c.conversation_id).where(
            messages.c.id == message_id, messages.c.user_id == uid, messages.c.role == "user"
        )
    )
    if conversation_id is None:
        return False
    conn.execute(sa.select(conversations.c.id).where(conversations.c.id == conversation_id).with_for_update())
    _bury(conn, messages.c.id == message_id, now)
    conn.execute(sa.delete(messages).where(sa.or_(messages.c.id == message_id, messages.c.reply_to == message_id)))
    conn.execute(sa.delete(dead_letters).where(dead_letters.c.message_id == message_id))
    return True


def delete_conversation(conn: Connection, uid: str, conversation_id: str, now: int) -> bool:
    """Delete a user's conversation and all that was said in it. False if the user has no such conversation."""
    deleted = conn.execute(
        sa.update(conversations)
        .where(
            conversations.c.id == conversation_id, conversations.c.user_id == uid, conversations.c.deleted_at.is_(None)
        )
        .values(**_EMPTIED, updated_at=now, deleted_at=now)
    )
    if deleted.rowcount == 0:
        return False
    said = messages.c.conversation_id == conversation_id
    _bury(conn, said, now)
    conn.execute(sa.delete(messages).where(said))
    # After the messages: a reply that fails at this moment holds its row until its letter is there, to be found here.
    conn.execute(sa.delete(dead_letters).where(dead_letters.c.conversation_id == conversation_id))
    return True


def delete_user(conn: Connection, uid: str, now: int) -> bool:
    """Delete a user and everything of theirs; a character that they made is hidden. False if there is no such user."""
    owned = conversations.c.user_id == uid
    conn.execute(sa.select(conversations.c.id).where(owned).order_by(conversations.c.id).with_for_update()).all()
    deleted = conn.execute(
        sa.update(users)
        .where(users.c.id == uid, users.c.deleted_at.is_(None))
        .values(name="", updated_at=now, deleted_at=now)
    )
    if deleted.rowcount == 0:
        return False
    conn.execute(
        sa.update(conversations)
        .where(owned)
        .values(**_EMPTIED, updated_at=now, deleted_at=sa.func.coalesce(conversations.c.deleted_at, now))
    )
    _bury(conn, messages.c.user_id == uid, now)
    for table in (messages, dead_letters, refresh_tokens):
        conn.execute(sa.delete(table).where(table.c.user_id == uid))
    hidden = {"is_active": False, "is_public": False, "created_by": None, "updated_at": now}
    conn.execute(sa.update(characters).where(characters.c.created_by == uid).values(**hidden))
    return True


def _bury(conn: Connection, which: sa.ColumnElement[bool], now: int) -> None:
    """Leave a tombstone for each of these user messages, so that a record that comes again does not revive it."""
    buried = sa.select(sa.literal("message"), messages.c.id, messages.c.tenant, sa.literal(now)).where(
        which, messages.c.role == "user"
    )
    conn.execute(sa.insert(tombstones).from_select(["kind", "id", "tenant", "deleted_at"], buried))
