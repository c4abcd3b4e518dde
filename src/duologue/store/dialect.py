"""Where the two databases differ in their SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_missing(conn: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows that break no unique index; leave the others out."""
    if conn.dialect.name == "postgresql":
        conn.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)
    else:
        conn.execute(sqlite.insert(table).on_conflict_do_nothing(), rows)


def to_json(value: Any) -> str:
    """Return the text of a JSON column."""
    return msgspec.json.encode(value).decode()


def from_json(text: str | bytes) -> Any:
    """Read the text of a JSON column."""
    return msgspec.json.decode(text)
