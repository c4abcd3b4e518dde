"""Records and messages that could not be processed, kept for an operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.ids import new_id
from duologue.store.cursors import Place, decode_cursor, encode_cursor
from duologue.store.dialect import insert_missing
from duologue.store.schema import dead_letters

DeadLetterState: TypeAlias = Literal["open", "replayed"]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that was given up: its bytes as they were, why, and after how many tries.

    `first_at` and `last_at` are those of the tries, milliseconds since the Unix epoch. `tenant`, `uid` and
    `message_id` are None if the bytes could not be read.
    """

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    error: str
    cause: str
    tries: int
    first_at: int
    last_at: int
    tenant: str | None = None
    uid: str | None = None
    message_id: str | None = None


class DeadLetterRow(DeadLetter, frozen=True, kw_only=True):
    """A dead letter in the store."""

    id: str
    state: DeadLetterState


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Some dead letters, the newest first. `next_cursor` is None on the last page."""

    items: list[DeadLetterRow]
    next_cursor: str | None


_PAGE: Final = (
    sa.select(*(c.label("uid") if c.name == "user_id" else c for c in dead_letters.c))
    .where(sa.tuple_(dead_letters.c.last_at, dead_letters.c.id) < sa.tuple_(sa.bindparam("at"), sa.bindparam("id")))
    .order_by(dead_letters.c.last_at.desc(), dead_letters.c.id.desc())
    .limit(sa.bindparam("limit"))
)
_END: Final = Place(2**62)


def insert_dead_letters(conn: Connection, letters: Sequence[DeadLetter]) -> None:
    """Keep these. One that is there already, by its topic, partition and offset, is left as it is."""
    if letters:
        insert_missing(conn, dead_letters, [_row(letter) for letter in letters])


def count_dead_letters(conn: Connection) -> int:
    """Return how many there are."""
    return conn.scalar(sa.select(sa.func.count()).select_from(dead_letters)) or 0


def list_dead_letters(conn: Connection, cursor: str | None, limit: int) -> DeadLetterPage:
    """Return a page, the newest first. Raises Rejected for a cursor that is none of ours."""
    place = decode_cursor(cursor) if cursor else _END
    rows = conn.execute(_PAGE, {"at": place.at, "id": place.id, "limit": limit + 1}).mappings().all()
    items = [DeadLetterRow(**row) for row in rows[:limit]]
    more = encode_cursor(Place(items[-1].last_at, items[-1].id)) if len(rows) > limit else None
    return DeadLetterPage(items, more)


def _row(letter: DeadLetter) -> dict[str, Any]:
    row = msgspec.structs.asdict(letter)
    row["user_id"] = row.pop("uid")
    return row | {"id": new_id(), "state": "open", "headers": dict(letter.headers)}
