"""Conversations: a user's thread with a character, or with none."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.ids import new_id
from duologue.store.characters import CharacterRow
from duologue.store.cursors import Place, decode_cursor, encode_cursor
from duologue.store.dialect import insert_missing
from duologue.store.schema import conversations
from duologue.store.users import UserRow

ConversationStatus: TypeAlias = Literal["active", "archived"]


class ConversationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation. `uid` is its user's row id; `title` is None until something was said."""

    id: str
    tenant: str
    uid: str
    character_id: str | None
    title: str | None
    status: ConversationStatus
    settings: dict[str, Any]
    is_default: bool
    created_at: int
    updated_at: int
    last_activity_at: int


class ConversationPage(msgspec.Struct, frozen=True):
    """Some conversations, newest activity first. `next_cursor` is None on the last page."""

    items: list[ConversationRow]
    next_cursor: str | None


_ROWS: Final = sa.select(
    conversations.c.id,
    conversations.c.tenant,
    conversations.c.user_id.label("uid"),
    conversations.c.character_id,
    conversations.c.title,
    conversations.c.status,
    conversations.c.settings,
    conversations.c.is_default,
    conversations.c.created_at,
    conversations.c.updated_at,
    conversations.c.last_activity_at,
).where(conversations.c.user_id == sa.bindparam("uid"), conversations.c.deleted_at.is_(None))

_OWNED: Final = _ROWS.where(conversations.c.id == sa.bindparam("id"))
# In the very words of the unique index, or SQLite does not see that it fits.
_DEFAULT: Final = _ROWS.where(
    sa.text("conversations.is_default"), sa.text("coalesce(conversations.character_id, '') = :character_id")
)
_ACTIVITY: Final = sa.tuple_(conversations.c.last_activity_at, conversations.c.id)
_PLACE: Final = sa.tuple_(sa.bindparam("at", type_=sa.BigInteger), sa.bindparam("id", type_=sa.Text))
_LISTED: Final = (
    _ROWS.where(conversations.c.next_position > 1, _ACTIVITY < _PLACE)
    .order_by(conversations.c.last_activity_at.desc(), conversations.c.id.desc())
    .limit(sa.bindparam("limit"))
)
_EMPTY: Final = (
    _ROWS.where(
        conversations.c.next_position == 1,
        conversations.c.is_default.is_(False),
        conversations.c.title.is_(None),
        sa.func.coalesce(conversations.c.character_id, "") == sa.bindparam("character_id"),
    )
    .order_by(conversations.c.last_activity_at.desc(), conversations.c.id.desc())
    .offset(sa.bindparam("skipped"))
    .limit(1)
)
_END: Final = Place(2**62)

MAX_EMPTY: Final = 32
"""Conversations of a user with one character in which nothing was said."""


def default_conversation(conn: Connection, user: UserRow, character: CharacterRow | None, now: int) -> ConversationRow:
    """Return the user's default conversation, or the one with a character, made now if there is none.

    Of two calls at once, both get the same one (rule Conversations): the unique index lets one row in, and what is
    read afterwards is that.
    """
    values = {"uid": user.uid, "character_id": character.id if character else ""}
    found = _one(conn, _DEFAULT, values)
    if found is None:
        insert_missing(conn, conversations, [_row(user, character, now, is_default=True)])
        found = _one(conn, _DEFAULT, values)
    if found is None:
        raise AssertionError("a conversation that was just made is not there")
    return found


def new_conversation(
    conn: Connection,
    user: UserRow,
    character: CharacterRow | None,
    now: int,
    *,
    title: str | None = None,
    settings: dict[str, Any] | None = None,
) -> ConversationRow:
    """Make a further conversation. It is not listed while it is empty.

    A plain one (without title and settings) is the oldest in which nothing was said if there are `MAX_EMPTY` of them:
    who asks for new ones without end gets no rows without end.
    """
    if title is None and settings is None:
        values = {"uid": user.uid, "character_id": character.id if character else "", "skipped": MAX_EMPTY - 1}
        if (oldest := _one(conn, _EMPTY, values)) is not None:
            return oldest
    row = _row(user, character, now, is_default=False) | {"title": title, "settings": settings or {}}
    conn.execute(sa.insert(conversations), row)
    return ConversationRow(
        id=row["id"],
        tenant=user.tenant,
        uid=user.uid,
        character_id=row["character_id"],
        title=title,
        status="active",
        settings=row["settings"],
        is_default=False,
        created_at=now,
        updated_at=now,
        last_activity_at=now,
    )


def owned_conversation(conn: Connection, uid: str, conversation_id: str) -> ConversationRow | None:
    """Return the user's conversation of that id, None if it is another's, deleted, or not there."""
    return _one(conn, _OWNED, {"uid": uid, "id": conversation_id})


def list_conversations(
    conn: Connection,
    uid: str,
    *,
    status: ConversationStatus | None = None,
    character_id: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> ConversationPage:
    """Return a page of the user's conversations that hold something, newest activity first.

    Raises:
        Rejected: the cursor is none of ours.
    """
    statement = _LISTED
    if status is not None:
        statement = statement.where(conversations.c.status == status)
    if character_id is not None:
        statement = statement.where(conversations.c.character_id == character_id)
    place = decode_cursor(cursor) if cursor else _END
    rows = conn.execute(statement, {"uid": uid, "at": place.at, "id": place.id, "limit": limit + 1}).mappings().all()
    items = [ConversationRow(**row) for row in rows[:limit]]
    more = encode_cursor(Place(items[-1].last_activity_at, items[-1].id)) if len(rows) > limit else None
    return ConversationPage(items, more)


def _row(user: UserRow, character: CharacterRow | None, now: int, *, is_default: bool) -> dict[str, Any]:
    return {
        "id": new_id(),
        "tenant": user.tenant,
        "user_id": user.uid,
        "character_id": character.id if character else None,
        "title": None,
        "status": "active",
        "settings": {},
        "is_default": is_default,
        "created_at": now,
        "updated_at": now,
        "last_activity_at": now,
    }


def _one(conn: Connection, statement: sa.Select[Any], values: dict[str, Any]) -> ConversationRow | None:
    row = conn.execute(statement, values).mappings().first()
    return None if row is None else ConversationRow(**row)
