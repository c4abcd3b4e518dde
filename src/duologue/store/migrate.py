"""Bringing a database's schema to this program's. Cheap when there is nothing to do: Alembic is not even imported."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from duologue.domain.clock import wall_clock
from duologue.domain.errors import StartRefused
from duologue.store.characters import is_seeded, seed_characters
from duologue.store.database import backend_of, run_once
from duologue.store.dialect import lock_migrations
from duologue.store.revision import HEAD, current_revision

if TYPE_CHECKING:
    from alembic.config import Config

_SCRIPTS: Final = Path(__file__).parent / "migrations"


def migrate(url: str) -> None:
    """Bring the schema of the database at `url` to `HEAD`, and insert the characters that come with the program.

    Several processes may do so at once: one does it, the others wait and find it done. Call it from a thread
    that runs no event loop.

    Raises:
        StartRefused: no adapter knows such a URL, or a newer program has migrated the database.
        StoreUnavailable: the database cannot be reached.
    """
    run_once(url, _migrate)


def migrate_sql(url: str) -> str:
    """Return the statements that `migrate` would run on an empty database of the kind of `url`, for an operator to
    read or run. Seeding characters is not among them: `migrate` does it when it finds some missing."""
    from alembic import command  # noqa: PLC0415 - see the module

    output = io.StringIO()
    config = alembic_config()
    config.set_main_option("sqlalchemy.url", f"{backend_of(url)}://")
    config.output_buffer = output
    command.upgrade(config, "head", sql=True)
    return output.getvalue()


def alembic_config(conn: Connection | None = None) -> Config:
    """Return Alembic's configuration, for `conn` if there is one, without a file."""
    from alembic.config import Config  # noqa: PLC0415 - see the module

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = conn
    return config


def _migrate(conn: Connection) -> None:
    if current_revision(conn) != HEAD:
        lock_migrations(conn)
        if current_revision(conn) != HEAD:  # else another process has done it meanwhile
            _upgrade(conn)
    if not is_seeded(conn):
        seed_characters(conn, wall_clock())


def _upgrade(conn: Connection) -> None:
    """Upgrade within the caller's transaction: the schema changes as a whole or not at all."""
    from alembic import command  # noqa: PLC0415 - see the module
    from alembic.util import CommandError  # noqa: PLC0415 - see the module

    try:
        command.upgrade(alembic_config(conn), "head")
    except CommandError as error:
        raise StartRefused(f"the database was made by another version of this program: {error}") from error
