"""Which schema a database has, told without Alembic, whose import costs more than the question."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

HEAD: Final = "0002"
"""The newest migration; a test holds it equal to the one in `migrations/versions`."""

_VERSION: Final = sa.table("alembic_version", sa.column("version_num", sa.Text))


def current_revision(conn: Connection) -> str | None:
    """Return the revision of the schema, None for a database without one."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    return conn.scalar(sa.select(_VERSION.c.version_num))


def serves(revision: str) -> bool:
    """Tell whether a schema has what this program needs: it is this one's, or a newer one's.

    Revisions are numbers of four digits in their order; a test holds them so, since the migrations of a newer program
    are not here to be asked.
    """
    return len(revision) == len(HEAD) and revision.isdecimal() and revision >= HEAD
