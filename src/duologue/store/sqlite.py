"""SQLite: one thread writes, a few read, and a transaction is one hop to such a thread and back.

SQLite has one writer at a time anyway. With one thread for it, transactions queue in Python, where waiting is free,
and never meet `SQLITE_BUSY` among themselves. ADR 0002 has the figures.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from duologue.domain.errors import StoreUnavailable
from duologue.observability.metrics import STORE_SECONDS
from duologue.store.database import StoreRefused, require_schema
from duologue.store.dialect import from_json, to_json
from duologue.store.sqlite_writer import SqliteWriter

P = ParamSpec("P")
T = TypeVar("T")

READERS: Final = 2
BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long a transaction waits for another process, such as a backup, that holds the file's lock."""

_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # a commit is on disk when it returns, also if the machine dies
    "PRAGMA foreign_keys=ON",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-16000",
    "PRAGMA wal_autocheckpoint=16384",  # 64 MB, should the writer's own checkpoints not keep up
)

_DATA_ERRORS: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)


class SqliteDatabase:
    """A file of SQLite. See `Database`."""

    def __init__(self, url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> None:
        self._writer = SqliteWriter(
            create_engine(url, "BEGIN IMMEDIATE", connections=2, busy_timeout_seconds=busy_timeout_seconds), _translated
        )
        self._reading = create_engine(url, "BEGIN", connections=READERS, busy_timeout_seconds=busy_timeout_seconds)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Database.read`."""
        call = partial(self._read, query, args, kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._readers, call)

    async def write(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Database.write`."""

        def timed(conn: Connection) -> T:
            with _timed(query):
                return query(conn, *args, **kwargs)

        return await self._writer.run(timed)

    async def autocommit(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Database.autocommit`."""
        return await self.write(query, *args, **kwargs)

    async def check(self) -> None:
        """See `Database.check`."""
        await self.read(require_schema)

    async def aclose(self) -> None:
        """See `Database.aclose`."""
        await asyncio.gather(self._writer.aclose(), asyncio.to_thread(self._readers.shutdown))
        self._reading.dispose()

    def _read(self, query: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]) -> T:
        try:
            with _timed(query), self._reading.begin() as conn:
                return query(conn, *args, **kwargs)
        except (DBAPIError, sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            raise _translated(error) from error


def run_once(url: str, query: Callable[[Connection], T]) -> T:
    """See `database.run_once`."""
    engine = create_engine(url, "BEGIN IMMEDIATE")
    try:
        with engine.begin() as conn:
            return query(conn)
    except (DBAPIError, sqlite3.Error) as error:
        raise _translated(error) from error
    finally:
        engine.dispose()


def create_engine(
    url: str, begin: str, *, connections: int = 1, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS
) -> Engine:
    """Return an engine whose transactions start with the statement `begin`."""
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        json_serializer=to_json,
        json_deserializer=from_json,
        connect_args={"timeout": busy_timeout_seconds, "cached_statements": 256},
    )
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", lambda conn: conn.exec_driver_sql(begin))
    return engine


def _prepare(connection: Any, _: object) -> None:
    """Set a connection up. Python's sqlite3 begins transactions on its own, and late, unless it is told not to."""
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(pragma).close()


def _timed(query: Callable[..., Any]) -> AbstractContextManager[object]:
    return STORE_SECONDS.labels(getattr(query, "__name__", "query")).time()


def _translated(error: Exception) -> Exception:
    """Return what tells the caller of a failed transaction what to do next; errors that are not the database's stay."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, (OverflowError, UnicodeEncodeError)):  # sqlite3's own, while it binds a value
        return StoreRefused(f"the database cannot hold the value: {cause}")
    if isinstance(cause, _DATA_ERRORS):
        return StoreRefused(f"the database refuses the data: {cause}")
    if isinstance(cause, sqlite3.Error):
        return StoreUnavailable(f"the database is not available: {cause}")
    return error
