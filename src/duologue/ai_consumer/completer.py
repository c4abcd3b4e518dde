"""Storing how replies end: what is due together goes into the store in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from duologue.domain.clock import Clock
from duologue.log.until_done import until_done
from duologue.observability.metrics import STORE_SECONDS
from duologue.store.database import Database, StoreRefused
from duologue.store.dead_letters import DeadLetter, insert_dead_letters
from duologue.store.outcomes import Completion, complete, mark_published
from duologue.store.replies import read_claims

_log = structlog.get_logger(__name__)

MAX_BATCH: Final = 200
_MARKS_WAIT_SECONDS: Final = 0.1
"""How long marks of what is published wait for a completion whose transaction takes them along."""


class _Due(NamedTuple):
    completion: Completion
    dead_letter: DeadLetter | None
    stored: asyncio.Future[bool]


class Completer:
    """Takes completions, and marks of what is on the log; `run` stores them. While the store is away they wait."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._due: list[_Due] = []
        self._published: list[str] = []
        self._wake = asyncio.Event()
        self._storing = False
        self._flushed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def complete(self, completion: Completion, dead_letter: DeadLetter | None = None) -> bool:
        """Store the end of a reply and, with it, what was given up.

        Returns:
            Whether it is stored; False if another attempt holds the reply, or it is gone.

        Raises:
            StoreRefused: the store will not take this completion.
        """
        stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._due.append(_Due(completion, dead_letter, stored))
        self._wake.set()
        return await stored

    def mark_published(self, reply_id: str) -> None:
        """Remember, soon, that a reply's outcome is on the log. Losing a mark costs a second append, no more."""
        self._published.append(reply_id)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_MARKS_WAIT_SECONDS, self._wake.set)

    async def run(self) -> None:
        """Store what comes, until cancelled."""
        try:
            while True:
                if not self._due and not self._wake.is_set():
                    await self._wake.wait()
                self._wake.clear()
                await self._store_due()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def flush(self) -> None:
        """Return when everything that was given so far is stored."""
        while self._due or self._published or self._storing:
            self._flushed.clear()
            self._wake.set()
            await self._flushed.wait()

    async def _store_due(self) -> None:
        batch, self._due = self._due[:MAX_BATCH], self._due[MAX_BATCH:]
        marks, self._published = self._published, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._storing = True
        if batch or marks:
            await self._store(batch, marks)
        self._storing = False
        self._flushed.set()

    async def _store(self, batch: Sequence[_Due], marks: Sequence[str]) -> None:
        try:
            await self._store_together(batch, marks)
        except StoreRefused as error:
            _log.warning("completions_refused", count=len(batch), error=str(error))
            await until_done(lambda: self._database.write(mark_published, marks), what="mark_published")
            for each in batch:
                await self._store_alone(each)

    async def _store_alone(self, each: _Due) -> None:
        try:
            await self._store_together([each], [])
        except StoreRefused as error:
            if not each.stored.done():
                each.stored.set_exception(error)

    async def _store_together(self, batch: Sequence[_Due], marks: Sequence[str]) -> None:
        letters = any(each.dead_letter for each in batch)
        run = self._database.write if letters else self._database.autocommit  # one statement, but for the letters
        with STORE_SECONDS.labels("complete").time():
            held = await until_done(lambda: run(_complete, batch, marks, self._clock()), what="complete")
        for each in batch:
            if not each.stored.done():  # else its reply was cancelled
                each.stored.set_result(each.completion.reply_id in held)


def _complete(conn: Connection, batch: Sequence[_Due], marks: Sequence[str], now: int) -> set[str]:
    """Store completions; return the ids of those that are in the store, now or since an earlier call."""
    completions = [each.completion for each in batch]
    stored = complete(conn, completions, marks, now)
    insert_dead_letters(
        conn, [each.dead_letter for each in batch if each.dead_letter and each.completion.reply_id in stored]
    )
    # A repeated call finds what the first one has stored, if only its answer was lost: that is no fence.
    fenced = [each.completion for each in batch if each.completion.reply_id not in stored]
    standing = read_claims(conn, [completion.reply_id for completion in fenced])
    return stored | {
        completion.reply_id
        for completion in fenced
        if standing.get(completion.reply_id) == (completion.attempt, completion.state)
    }
