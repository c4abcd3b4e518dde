"""Characters: who answers. Some come with the program, for every tenant; users make their own."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.store.builtin_characters import BUILT_IN, BUILT_IN_TENANT, DEFAULT_CHARACTER_ID
from duologue.store.dialect import insert_missing
from duologue.store.schema import characters

__all__ = ["DEFAULT_CHARACTER_ID", "CharacterRow", "find_character", "is_seeded", "list_characters", "seed_characters"]


class CharacterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A character. `created_by` is its owner's row id, None for one that comes with the program."""

    id: str
    tenant: str
    slug: str
    name: str
    description: str
    system_prompt: str
    greeting: str | None
    model: str | None
    temperature: float | None
    max_tokens: int | None
    avatar_url: str | None
    tags: list[str]
    is_public: bool
    is_active: bool
    created_by: str | None
    created_at: int
    updated_at: int


def _visible(uid: str | None) -> sa.ColumnElement[bool]:
    """Those that a user may see: the public ones and their own; without a user the public ones."""
    public = characters.c.is_public
    return public if uid is None else sa.or_(public, characters.c.created_by == uid)


def _living(tenant: str, uid: str | None) -> sa.Select[tuple[object, ...]]:
    return sa.select(characters).where(
        characters.c.tenant.in_((tenant, BUILT_IN_TENANT)), characters.c.is_active, _visible(uid)
    )


def list_characters(conn: Connection, tenant: str, uid: str | None = None) -> list[CharacterRow]:
    """Return the characters that a user may choose, in the order of their making; without `uid` the public ones."""
    rows = conn.execute(_living(tenant, uid).order_by(characters.c.created_at, characters.c.id)).mappings()
    return [CharacterRow(**row) for row in rows]


def find_character(conn: Connection, tenant: str, ref: str, uid: str | None = None) -> CharacterRow | None:
    """Return the character with that id or slug, None if there is none that the user may see.

    A tenant's own character goes before one of the program with the same slug, and an id before a slug.
    """
    statement = (
        _living(tenant, uid)
        .where(sa.or_(characters.c.id == ref, characters.c.slug == ref))
        .order_by(characters.c.id != ref, characters.c.tenant == BUILT_IN_TENANT)
        .limit(1)
    )
    row = conn.execute(statement).mappings().first()
    return None if row is None else CharacterRow(**row)


def is_seeded(conn: Connection) -> bool:
    """Tell whether every character that comes with the program is there."""
    ids = [character.id for character in BUILT_IN]
    return conn.scalar(sa.select(sa.func.count()).where(characters.c.id.in_(ids))) == len(ids)


def seed_characters(conn: Connection, now: int) -> None:
    """Insert the characters that come with the program, unless they are there: an operator's changes to them stay."""
    shared = {
        "tenant": BUILT_IN_TENANT,
        "model": None,
        "max_tokens": None,
        "avatar_url": None,
        "is_public": True,
        "is_active": True,
        "created_by": None,
        "updated_at": now,
    }
    rows = [
        # One millisecond apart, so that lists keep their order.
        shared | msgspec.structs.asdict(character) | {"created_at": now + place}
        for place, character in enumerate(BUILT_IN)
    ]
    insert_missing(conn, characters, rows)
