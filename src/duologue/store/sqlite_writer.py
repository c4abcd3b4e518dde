"""SQLite's one writer: a thread that commits together what waits together.

A commit costs a write to the disk, whatever it holds, and while it runs further transactions queue. They go into the
next commit as one: each in a savepoint of its own, so that one that fails takes nothing of its neighbours with it.
This is the group commit of Gray and Reuter, Transaction Processing, section 9.4.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final, Generic, TypeVar, cast

import structlog
from sqlalchemy import Connection, Engine

from duologue.observability.metrics import STORE_SECONDS

_log = structlog.get_logger(__name__)

T = TypeVar("T")

CHECKPOINT_EVERY: Final = 256
"""Transactions between two checkpoints."""

MAX_GROUP: Final = 64
"""Transactions in one commit; more wait for the next."""


class _Job(Generic[T]):
    """A transaction that waits, and what came of it."""

    __slots__ = ("error", "future", "query", "result")

    def __init__(self, query: Callable[[Connection], T], future: asyncio.Future[T]) -> None:
        self.query = query
        self.future = future
        self.result: T | None = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():  # its caller was cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(cast("T", self.result))


class SqliteWriter:
    """The thread that writes, with the only connection that does.

    A second thread moves what is committed from the write-ahead log into the database file, beside the writing: left to
    SQLite, the commit that fills the log would do so, and all that wait behind it would wait tens of milliseconds.

    Args:
        engine: opens the connections; its transactions begin with `BEGIN IMMEDIATE`.
        translate: turns an error of the database into one of this program's, and returns any other as it is.
    """

    def __init__(self, engine: Engine, translate: Callable[[Exception], Exception]) -> None:
        self._engine = engine
        self._translate = translate
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._jobs: deque[_Job[Any]] = deque()
        self._scheduled = False
        self._checkpointer = ThreadPoolExecutor(1, thread_name_prefix="store-checkpointer")
        self._checkpoint: Future[None] | None = None
        self._since_checkpoint = 0
        self._connection: Connection | None = None

    async def run(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a transaction; when this returns, it is committed.

        Raises:
            StoreUnavailable: the database cannot be reached; nothing is written.
            StoreRefused: it refuses the data; nothing of this transaction is written.
        """
        loop = asyncio.get_running_loop()
        job: _Job[T] = _Job(query, loop.create_future())
        self._jobs.append(job)
        if not self._scheduled:
            self._scheduled = True
            self._thread.submit(self._write_group, loop)
        return await job.future

    async def aclose(self) -> None:
        """Write what waits, then close the connection."""
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._checkpointer.shutdown)
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()

    def _write_group(self, loop: asyncio.AbstractEventLoop) -> None:
        group = [self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_GROUP))]
        try:
            self._commit(group)
        except Exception as error:  # noqa: BLE001 - each caller gets it
            translated = self._translate(error)
            for job in group:
                job.error = translated
        loop.call_soon_threadsafe(self._settle, loop, group)

    def _settle(self, loop: asyncio.AbstractEventLoop, group: list[_Job[Any]]) -> None:
        self._scheduled = bool(self._jobs)
        if self._scheduled:  # before the callers go on: the thread need not wait for them
            self._thread.submit(self._write_group, loop)
        for job in group:
            job.settle()
        self._since_checkpoint += len(group)
        if self._since_checkpoint >= CHECKPOINT_EVERY and (self._checkpoint is None or self._checkpoint.done()):
            self._since_checkpoint = 0
            self._checkpoint = self._checkpointer.submit(self._move_log)

    def _commit(self, group: list[_Job[Any]]) -> None:
        if self._connection is None:
            self._connection = self._engine.connect()
        transaction = self._connection.begin()
        try:
            for job in group:
                self._run_job(self._connection, job)
            with STORE_SECONDS.labels("commit").time():
                transaction.commit()
        finally:
            transaction.close()  # undoes what was not committed

    def _move_log(self) -> None:
        with closing(self._engine.raw_connection()) as conn, closing(conn.cursor()) as cursor:
            try:
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:  # the next one moves it, or SQLite itself when the log is long
                _log.warning("checkpoint_failed", error=str(error))

    def _run_job(self, conn: Connection, job: _Job[Any]) -> None:
        """Run a transaction of the group; if it fails it is undone, and the others are not."""
        raw = cast("sqlite3.Connection", conn.connection.driver_connection)
        raw.execute("SAVEPOINT job").close()
        try:
            job.result = job.query(conn)
        except Exception as error:
            job.error = self._translate(error)
            if not raw.in_transaction:  # a full disk, a lost file: SQLite has undone all of it
                raise
            raw.execute("ROLLBACK TO job").close()
        raw.execute("RELEASE job").close()
