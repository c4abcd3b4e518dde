"""The store's part of one turn of the ai-consumer: a batch is stored, and everything that can start is claimed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec
import structlog
from sqlalchemy import Connection

from duologue.ai_consumer.request import Request
from duologue.domain.clock import Clock
from duologue.domain.records import OutcomeRecord
from duologue.log.until_done import until_done
from duologue.observability.metrics import BATCH_MESSAGES, STORE_SECONDS
from duologue.store.database import Database, StoreRefused
from duologue.store.fresh import Begun, store_fresh
from duologue.store.messages import Incoming, Stored, StoredRequest
from duologue.store.outcomes import outcome
from duologue.store.replies import Claimed, ClaimState, claim_with_prompts, read_claims, store_and_claim

_log = structlog.get_logger(__name__)


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a turn.

    `stored` has an entry for each record of the batch. Of the replies that were to start, each is in `claims`, or in
    `standing` with its state if it could not be claimed, or in neither if it is gone. `outcomes` has the records of
    those that are finished and not published.
    """

    stored: list[Stored]
    claims: dict[str, Claimed]
    standing: dict[str, ClaimState]
    outcomes: dict[str, OutcomeRecord]


_NOTHING: Final = Tick(stored=[], claims={}, standing={}, outcomes={})


class Ticks:
    """Runs turns for one worker; while the store is away they are repeated.

    Args:
        database: the store.
        owner: this worker's name, for people.
        clock: tells the time.
    """

    def __init__(self, database: Database, owner: str, clock: Clock) -> None:
        self._database = database
        self._owner = owner
        self._clock = clock

    async def run(self, fresh: Sequence[Request], taken: Sequence[Request]) -> Tick:
        """Store what is fresh, and claim what was taken, of that or of what is stored.

        Raises:
            StoreRefused: the store refuses some of the data.
        """
        starting = set(taken)
        start = {place for place, request in enumerate(fresh) if request in starting}
        waiting = [request.reply_id for request in taken if request.stored is not None]
        with STORE_SECONDS.labels("accept").time():
            return await self._run([request.incoming for request in fresh], start, waiting)

    async def _run(self, batch: Sequence[Incoming], start: Collection[int], waiting: Sequence[str]) -> Tick:
        begun = await self._begin(batch, start) if batch else []
        left = [place for place, entry in enumerate(begun) if entry is None]
        if not left and not waiting:
            return _tick_of(begun, start, _NOTHING)
        some = [batch[place] for place in left]
        start_left = {number for number, place in enumerate(left) if place in start}
        rest = await until_done(
            lambda: self._database.write(run_tick, some, start_left, waiting, self._owner, self._clock()),
            what="store_messages",
        )
        return _tick_of(begun, start, rest)

    async def _begin(self, batch: Sequence[Incoming], start: Collection[int]) -> Sequence[Begun | None]:
        BATCH_MESSAGES.observe(len(batch))
        try:
            return await until_done(
                lambda: self._database.autocommit(store_fresh, batch, start, self._owner, self._clock()),
                what="store_fresh_messages",
            )
        except StoreRefused as error:  # nothing of it is stored: which one it was is found out with all else
            _log.info("fresh_batch_refused", messages=len(batch), error=str(error))
            return [None] * len(batch)


def _tick_of(begun: Sequence[Begun | None], start: Collection[int], rest: Tick) -> Tick:
    """Put together what was begun at once, and what came of the rest."""
    others = iter(rest.stored)
    claims, standing = dict(rest.claims), dict(rest.standing)
    stored: list[Stored] = []
    for place, entry in enumerate(begun):
        if entry is None:
            stored.append(next(others))
            continue
        stored.append(entry.stored)
        if entry.claim is not None:
            claims[entry.stored.reply_id] = entry.claim
        elif place in start:
            standing[entry.stored.reply_id] = ClaimState(0, "queued")
    return Tick(stored=stored, claims=claims, standing=standing, outcomes=rest.outcomes)


def run_tick(
    conn: Connection, batch: Sequence[Incoming], start: Collection[int], waiting: Sequence[str], owner: str, now: int
) -> Tick:
    """Store a batch and claim what can start, in one transaction.

    Args:
        batch: new records, in the order of the log.
        start: the places among them of those whose replies are to start at once.
        waiting: ids of replies stored earlier that are to start now.
        owner: this worker's name.
        now: milliseconds since the Unix epoch.
    """
    stored, claimed = store_and_claim(conn, batch, start, owner, now)
    claims = {claim.reply_id: claim for claim in claimed}
    if waiting:
        claims |= {claim.reply_id: claim for claim in claim_with_prompts(conn, waiting, owner, now)}
    wanted = [stored[place] for place in start]
    begun = [entry.reply_id for entry in wanted if isinstance(entry, StoredRequest)]
    missed = [reply_id for reply_id in (*begun, *waiting) if reply_id not in claims]
    standing = read_claims(conn, missed)
    return Tick(
        stored=stored,
        claims=claims,
        standing=standing,
        outcomes={record.reply_id: record for record in outcome(conn, list(standing))},
    )
