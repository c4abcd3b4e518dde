"""The store's part of one turn of the ai-consumer: a batch is stored and everything that can start is claimed, in one
transaction. Runs in the database's thread."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import Connection

from duologue.domain.records import OutcomeRecord
from duologue.store.messages import Incoming, Stored, StoredRequest
from duologue.store.outcomes import outcome
from duologue.store.replies import Claimed, ClaimState, claim_with_prompts, read_claims, store_and_claim


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction brought.

    `stored` has an entry for each record of the batch. Of the replies that were to start, each is in `claims`, or in
    `standing` with its state if it could not be claimed, or in neither if it is gone. `outcomes` has the records of
    those that are finished and not published.
    """

    stored: list[Stored]
    claims: dict[str, Claimed]
    standing: dict[str, ClaimState]
    outcomes: dict[str, OutcomeRecord]


def run_tick(
    conn: Connection, batch: Sequence[Incoming], start: Collection[int], waiting: Sequence[str], owner: str, now: int
) -> Tick:
    """Store a batch and claim what can start.

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
