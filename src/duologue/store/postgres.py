"""PostgreSQL: asyncpg through SQLAlchemy's asyncio engine, a transaction a connection, none of which takes long.

A query is a synchronous function; `run_sync` runs it in a greenlet of the event loop's thread, and each of its
statements yields to the loop until its rows are there. ADR 0006 has the figures.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakSet

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, DisconnectionError, EmulatedDBAPIException
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from duologue.domain.errors import StartRefused, StoreUnavailable
from duologue.observability.metrics import STORE_RETRIES, STORE_SECONDS
from duologue.store.database import StoreRefused, require_schema
from duologue.store.dialect import from_json, to_json

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

POOL_SIZE: Final = 10
BOUND_SECONDS: Final = 10.0
"""From a call to the end of its transaction at most. Readers of changes count on it (`history.OVERLAP_MS`)."""
CONNECT_SECONDS: Final = 3.0
CLOSE_SECONDS: Final = 1.0
MAX_TRIES: Final = 8
_FIRST_PAUSE_SECONDS: Final = 0.005

_SESSION: Final = {
    # Whatever the server's own defaults are: after a lock was waited for, the next statement has to see what its holder
    # has committed.
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "jit": "off",
    # A plan that was made while a table was small is kept, and reads it whole when it has grown, until there are new
    # statistics. Every statement here has an index.
    "enable_seqscan": "off",
    "timezone": "UTC",
}
_LIMITS: Final = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")
# One statement, which leaves out what a server does not know: `transaction_timeout` came with PostgreSQL 17.
_SET_UP: Final = (
    "SELECT set_config(known.name, wanted.value, false) FROM pg_settings AS known"
    " JOIN unnest($1::text[], $2::text[]) AS wanted (name, value) ON wanted.name = known.name"
)

_REPEATABLE: Final = {"40001": "serialization", "40P01": "deadlock"}
_DATA_CLASSES: Final = ("22", "23", "54")
"""Data exceptions, broken constraints, and values larger than a limit, as of an index's row."""


class PostgresDatabase:
    """A database of PostgreSQL. See `Database`.

    Transactions run in tasks of this object's own: a caller that is cancelled does not stop its transaction, and no
    driver has to be cancelled in the middle of its protocol.

    Args:
        url: `postgresql://…`, with what libpq understands.
        pool_size: connections at most.
        bound_seconds: how long a transaction may take, waiting for a connection and repetitions included.
    """

    def __init__(self, url: str, *, pool_size: int = POOL_SIZE, bound_seconds: float = BOUND_SECONDS) -> None:
        self._engine = create_engine(url, pool_size=pool_size, limit_seconds=bound_seconds)
        self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._autocommitting = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._bound_seconds = bound_seconds
        self._transactions: set[asyncio.Task[Any]] = set()
        self._connections: WeakSet[Any] = WeakSet()
        sa.event.listen(self._engine.sync_engine, "connect", self._opened)

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Database.read`."""
        return await self._run(self._reading, query, args, kwargs)

    async def write(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Database.write`."""
        return await self._run(self._engine, query, args, kwargs)

    async def autocommit(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Database.autocommit`."""
        return await self._run(self._autocommitting, query, args, kwargs)

    async def check(self) -> None:
        """See `Database.check`."""
        await self.read(require_schema)

    async def aclose(self) -> None:
        """See `Database.aclose`."""
        await asyncio.gather(*self._transactions, return_exceptions=True)
        # A server that hangs does not answer the farewell either, for which asyncpg would wait without end.
        timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._terminate)
        await self._engine.dispose()
        timer.cancel()

    def _opened(self, connection: Any, _record: object) -> None:
        self._connections.add(connection.driver_connection)

    def _terminate(self) -> None:
        for connection in list(self._connections):
            connection.terminate()

    async def _run(
        self, engine: AsyncEngine, query: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> T:
        name = getattr(query, "__name__", "query")
        transaction = asyncio.create_task(self._repeated(engine, lambda conn: query(conn, *args, **kwargs), name))
        self._transactions.add(transaction)
        transaction.add_done_callback(self._ended)
        return await asyncio.shield(transaction)

    def _ended(self, transaction: asyncio.Task[Any]) -> None:
        self._transactions.discard(transaction)
        if not transaction.cancelled():
            transaction.exception()  # seen, also if the caller has gone

    async def _repeated(self, engine: AsyncEngine, query: Callable[[Connection], T], name: str) -> T:
        """Run a transaction, again if the database has chosen it as the victim of a conflict."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._bound_seconds
        for tried in range(1, MAX_TRIES + 1):
            try:
                with STORE_SECONDS.labels(name).time():
                    return await _transact(engine, query, ends_at)
            except _DRIVER_ERRORS as error:
                cause = _REPEATABLE.get(_sqlstate(error))
                pause = random.uniform(0, _FIRST_PAUSE_SECONDS * 2**tried)  # noqa: S311 - it spreads, it hides nothing
                if cause is None or tried == MAX_TRIES or loop.time() + pause >= ends_at:
                    raise _translated(error) from error
            STORE_RETRIES.labels(cause).inc()
            _log.info("transaction_repeated", transaction=name, cause=cause, tried=tried)
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")


def run_once(url: str, query: Callable[[Connection], T]) -> T:
    """See `database.run_once`."""
    return asyncio.run(_once(url, query))


async def _once(url: str, query: Callable[[Connection], T]) -> T:
    engine = create_engine(url, pool_size=1, limit_seconds=None)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_commit, query)
    except _DRIVER_ERRORS as error:
        raise _translated(error) from error
    finally:
        await engine.dispose()


def create_engine(url: str, *, pool_size: int = POOL_SIZE, limit_seconds: float | None = BOUND_SECONDS) -> AsyncEngine:
    """Return an engine for `url`, `postgresql://…`.

    Args:
        url: `postgres://` and `postgresql+asyncpg://` are the same; the rest is for asyncpg to read, as libpq would.
        pool_size: connections at most; they are opened when they are needed.
        limit_seconds: how long the server lets a transaction live. None: for ever.
    """
    dsn = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=partial(_connect, dsn, limit_seconds),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        json_serializer=to_json,
        json_deserializer=from_json,
    )
    sa.event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


async def _connect(dsn: str, limit_seconds: float | None) -> Any:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_SECONDS)
    limits = {} if limit_seconds is None else dict.fromkeys(_LIMITS, f"{limit_seconds * 1000:.0f}ms")
    session = _SESSION | limits
    try:
        await connection.fetch(_SET_UP, list(session), list(session.values()), timeout=CONNECT_SECONDS)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
    """Let the pool replace a connection that the server has closed while it lay there: asyncpg has heard of that, so
    this costs nothing, where asking the server would cost each transaction a round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


async def _transact(engine: AsyncEngine, query: Callable[[Connection], T], ends_at: float) -> T:
    connection = await engine.connect()
    raw = await connection.get_raw_connection()
    # Closed rather than cancelled: what waits then fails at once, also if the server hangs, and no commit can be sent
    # later. The server has the same limits, for the case that this process hangs.
    timer = asyncio.get_running_loop().call_at(ends_at, raw.driver_connection.terminate)  # type: ignore[union-attr]
    try:
        return await connection.run_sync(_commit, query)
    except _DRIVER_ERRORS as error:
        if not _is_data_error(error) and _sqlstate(error) not in _REPEATABLE:
            await _discard(connection)
        raise
    finally:
        timer.cancel()
        await connection.close()


def _commit(conn: Connection, query: Callable[[Connection], T]) -> T:
    with conn.begin():
        return query(conn)


async def _discard(connection: AsyncConnection) -> None:
    """Close a connection that failed: one that hangs, is closed, or keeps statements of an older schema."""
    await connection.invalidate()


_DRIVER_ERRORS: Final = (
    DBAPIError,
    EmulatedDBAPIException,  # asyncpg's own, as SQLAlchemy's cursors raise them, which hot statements use
    sa.exc.TimeoutError,  # no connection was free in time
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,  # TimeoutError among them
    UnicodeEncodeError,
)


def _cause(error: BaseException) -> BaseException:
    """Return the driver's own error."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, EmulatedDBAPIException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _sqlstate(error: BaseException) -> str:
    return getattr(_cause(error), "sqlstate", None) or ""


def _is_data_error(error: BaseException) -> bool:
    return isinstance(error, UnicodeEncodeError) or _sqlstate(error)[:2] in _DATA_CLASSES


def _translated(error: Exception) -> Exception:
    """Return what tells the caller of a failed transaction what to do next."""
    cause = _cause(error)
    if isinstance(cause, asyncpg.ClientConfigurationError):
        return StartRefused(f"DATABASE_URL: {cause}")
    if _is_data_error(error):
        # asyncpg's own, for a value that it cannot encode, quotes what users say; what that was caused by does not.
        return StoreRefused(f"the database refuses the data: {cause.__cause__ or cause}")
    return StoreUnavailable(f"the database is not available: {str(cause) or type(cause).__name__}")
