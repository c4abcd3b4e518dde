"""A database as the roles see it: functions over a `sqlalchemy.Connection`, each run in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.errors import Permanent, StartRefused, StoreUnavailable
from duologue.store.revision import HEAD, current_revision, serves

P = ParamSpec("P")
T = TypeVar("T")

Query = Callable[Concatenate[Connection, P], T]
"""A function of the modules beside this one. On SQLite it runs in a thread, on PostgreSQL in a greenlet of the event
loop, and maybe more than once: it touches nothing but its arguments, and waits for nothing but its statements."""


class StoreRefused(Permanent):
    """The database refuses the data of this call: alone or again, it will be refused."""


class Database(Protocol):
    """A database, open."""

    async def read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a query that only reads, on one snapshot.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        ...

    async def write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a query in one transaction, which is durable when this returns and undone when it raises.

        A caller that is cancelled does not know whether the transaction took place.

        Raises:
            StoreUnavailable: the database cannot be reached.
            StoreRefused: it refuses the data.
        """
        ...

    async def autocommit(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a query each of whose statements may be a transaction of its own, as one that is the whole change.

        On PostgreSQL each is, which spares the round trips of BEGIN and COMMIT. On SQLite, where these cost nothing,
        it is the same as `write`.

        Raises:
            StoreUnavailable: the database cannot be reached; statements before that have taken place.
            StoreRefused: it refuses the data of a statement.
        """
        ...

    async def check(self) -> None:
        """Return if the database answers and this program can work with its schema: `require_schema`.

        Raises:
            StoreUnavailable: it does not, or `duologue migrate` has not run.
        """
        ...

    async def aclose(self) -> None:
        """Let what runs come to its end, then close every connection."""
        ...


@asynccontextmanager
async def open_database(url: str, *, pool_size: int = 10) -> AsyncIterator[Database]:
    """Open the database at `url`, as `sqlite:///path` or `postgresql://user:password@host/name`.

    Args:
        url: where it is.
        pool_size: connections to PostgreSQL at most.

    Raises:
        StartRefused: no adapter knows such a URL.
    """
    database = _adapter(url, pool_size)
    try:
        yield database
    finally:
        await database.aclose()


def run_once(url: str, query: Callable[[Connection], T]) -> T:
    """Run one query in a transaction of its own, however long it takes, from a thread that runs no event loop.

    Raises:
        StartRefused: no adapter knows such a URL.
        StoreUnavailable: the database cannot be reached.
        StoreRefused: it refuses the data.
    """
    if backend_of(url) == "sqlite":
        from duologue.store import sqlite  # noqa: PLC0415 - see `_adapter`

        return sqlite.run_once(url, query)
    from duologue.store import postgres  # noqa: PLC0415

    return postgres.run_once(url, query)


def _adapter(url: str, pool_size: int) -> Database:
    # The adapters import the port above, and only one of their drivers is needed.
    if backend_of(url) == "sqlite":
        from duologue.store.sqlite import SqliteDatabase  # noqa: PLC0415

        return SqliteDatabase(url)
    from duologue.store.postgres import PostgresDatabase  # noqa: PLC0415

    return PostgresDatabase(url, pool_size=pool_size)


def backend_of(url: str) -> Literal["sqlite", "postgresql"]:
    """Return which database a URL names.

    Raises:
        StartRefused: none that has an adapter.
    """
    try:
        backend = sa.make_url(url).get_backend_name()
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StartRefused("DATABASE_URL is no URL; it has the form sqlite:///path or postgresql://…") from error
    if backend in ("postgresql", "postgres"):
        return "postgresql"
    if backend == "sqlite":
        return "sqlite"
    raise StartRefused(f"DATABASE_URL names {backend!r}; this version knows sqlite:///path and postgresql://…")


def require_schema(conn: Connection) -> None:
    """Return if the schema is this program's or a newer one's.

    A newer one serves too: migrations within a minor version only add, so in an upgrade the database is migrated first
    and the processes that run go on until they are replaced.

    Raises:
        StoreUnavailable: it is older, or another program's, or there is none.
    """
    revision = current_revision(conn)
    if revision is None or not serves(revision):
        found = f"is at revision {revision}" if revision else "is empty"
        raise StoreUnavailable(f"the database {found}, this program needs {HEAD}: run `duologue migrate`")
