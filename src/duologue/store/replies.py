"""Replies: who writes one, under which attempt, and how it ends.

A reply is claimed under the next attempt number, and whatever is written later names that attempt: a worker that was
overtaken finds its number gone, and its writes change nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.store.dialect import store_clock
from duologue.store.messages import Incoming, ReplyState, Stored, StoredRequest, store_messages
from duologue.store.prepared import Prepared, is_one_of
from duologue.store.prompts import PromptSource, read_prompts
from duologue.store.schema import UNFINISHED, messages


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The right to write a reply, until somebody claims it under a higher attempt.

    `taken_over` tells that it was being written before; `takeovers` counts those that followed no graceful handover.
    """

    reply_id: str
    attempt: int
    takeovers: int
    taken_over: bool


class Claimed(Claim, frozen=True, kw_only=True):
    """A claim with what the model is to be asked."""

    prompt: PromptSource


class ClaimState(NamedTuple):
    """A reply's attempt and state as they stand."""

    attempt: int
    state: ReplyState


_earlier = messages.alias("earlier")
_version = messages.alias("version")

# As text: SQLAlchemy would compare an expression with 1 on SQLite, which then does not see that the index fits.
_IS_UNFINISHED: Final = sa.text(f"messages.{UNFINISHED}")
_EARLIER_TURN: Final = sa.exists(sa.literal_column("1")).where(
    _earlier.c.conversation_id == messages.c.conversation_id,
    sa.text(f"earlier.{UNFINISHED}"),
    _earlier.c.turn < messages.c.turn,
)
ATTEMPTS_BEFORE: Final = (
    sa.select(sa.func.coalesce(sa.func.max(_version.c.attempt), 0))
    .where(_version.c.reply_to == messages.c.reply_to, _version.c.generation < messages.c.generation)
    .scalar_subquery()
)
"""The last attempt of the message's earlier generations, which no longer change."""
_IS_HANDOVER: Final = messages.c.leaving_until.is_not(None)
_WAS_GENERATING: Final = messages.c.state == sa.literal_column("'generating'")

# One statement, so that what it tests is what it changes. On PostgreSQL a second worker waits for the first one's
# row lock and then sees the row as the first left it: it takes over under a further attempt, counted from the row
# itself (a subquery would still see the old one); only earlier generations, which no longer change, are looked up.
# The test for smaller turns reads a snapshot that can be older: then it finds too many, never too few.
_CLAIM: Final = Prepared(
    sa.update(messages)
    .where(
        is_one_of(messages.c.id),
        _IS_UNFINISHED,
        sa.or_(messages.c.leaving_until.is_(None), messages.c.leaving_until <= store_clock()),
        ~_EARLIER_TURN,
    )
    .values(
        attempt=1 + sa.case((messages.c.attempt > 0, messages.c.attempt), else_=ATTEMPTS_BEFORE),
        takeovers=messages.c.takeovers + sa.case((sa.and_(_WAS_GENERATING, ~_IS_HANDOVER), 1), else_=0),
        handovers=messages.c.handovers + sa.case((sa.and_(_WAS_GENERATING, _IS_HANDOVER), 1), else_=0),
        state="generating",
        owner=sa.bindparam("owner"),
        claimed_at=sa.bindparam("now"),
        leaving_until=None,
        updated_at=sa.bindparam("now"),
    )
    .returning(messages.c.id, messages.c.attempt, messages.c.takeovers, messages.c.handovers)
)

_ADVANCE: Final = (
    sa.update(messages)
    .where(messages.c.id == sa.bindparam("reply_id"), messages.c.attempt == sa.bindparam("held"), _WAS_GENERATING)
    .values(attempt=messages.c.attempt + 1, updated_at=sa.bindparam("now"))
    .returning(messages.c.attempt)
)

_LEAVE: Final = Prepared(
    sa.update(messages)
    .where(messages.c.id == sa.bindparam("reply_id"), messages.c.attempt == sa.bindparam("held"), _WAS_GENERATING)
    .values(leaving_until=store_clock() + sa.bindparam("lasting_ms", type_=sa.BigInteger))
)

_STATES: Final = Prepared(
    sa.select(messages.c.id, messages.c.attempt, messages.c.state).where(
        is_one_of(messages.c.id), messages.c.generation > 0
    )
)


def claim(conn: Connection, reply_ids: Sequence[str], owner: str, now: int) -> list[Claim]:
    """Claim those replies that can be written now: without outcome, not being handed over, and the first of their
    conversation that has none (rule Order). The others are left out.

    Args:
        reply_ids: which ones; `owner` is this worker's name, for people.
        now: milliseconds since the Unix epoch; a handover that has run out by the store's clock no longer holds.
    """
    if not reply_ids:
        return []
    rows = _CLAIM.rows(conn, {"ids": reply_ids, "owner": owner, "now": now})
    return [
        Claim(reply_id=reply_id, attempt=attempt, takeovers=takeovers, taken_over=takeovers + handovers > 0)
        for reply_id, attempt, takeovers, handovers in rows
    ]


def claim_with_prompts(conn: Connection, reply_ids: Sequence[str], owner: str, now: int) -> list[Claimed]:
    """Claim as `claim` does, and return what to ask for each claimed one, read in the same transaction."""
    claims = claim(conn, reply_ids, owner, now)
    prompts = read_prompts(conn, [held.reply_id for held in claims])
    return [
        Claimed(
            reply_id=held.reply_id,
            attempt=held.attempt,
            takeovers=held.takeovers,
            taken_over=held.taken_over,
            prompt=prompts[held.reply_id],
        )
        for held in claims
    ]


def store_and_claim(
    conn: Connection, batch: Sequence[Incoming], start: Collection[int], owner: str, now: int
) -> tuple[list[Stored], list[Claimed]]:
    """Store a batch as `store_messages` does and claim the replies that can start at once, in one transaction.

    Args:
        batch: records in the order of the log.
        start: places in the batch of those whose replies this worker would begin now. It leaves out those that it is
            writing already, or it would take them over from itself.
        owner: this worker's name, for people.
        now: milliseconds since the Unix epoch.

    Returns:
        An entry for each record, as it stood before the claims, and the claims that succeeded.
    """
    entries = store_messages(conn, batch, now)
    wanted = {
        entry.reply_id: None
        for place, entry in enumerate(entries)
        if place in start and isinstance(entry, StoredRequest) and entry.state in ("queued", "generating")
    }
    return entries, claim_with_prompts(conn, list(wanted), owner, now)


def advance_attempt(conn: Connection, reply_id: str, attempt: int, now: int) -> int | None:
    """Go on under the next attempt, for a further try after something of this one was sent (rule Try and attempt).

    Returns:
        The new attempt; None if `attempt` no longer holds.
    """
    advanced: int | None = conn.scalar(_ADVANCE, {"reply_id": reply_id, "held": attempt, "now": now})
    return advanced


def mark_leaving(conn: Connection, attempts: Mapping[str, int], lasting_ms: int, now: int) -> None:
    """Keep others from claiming these replies (id to attempt held) for a while, in which this worker finishes them.

    Both the end of that time and whether it has come are told by the store's clock (rule Owner).
    """
    if attempts:
        shared = {"lasting_ms": lasting_ms, "now": now}
        _LEAVE.run(conn, [{"reply_id": reply_id, "held": held} | shared for reply_id, held in attempts.items()])


def read_claims(conn: Connection, reply_ids: Sequence[str]) -> dict[str, ClaimState]:
    """Return attempt and state of these replies; one that was deleted is left out."""
    rows = _STATES.rows(conn, {"ids": reply_ids}) if reply_ids else ()
    return {row[0]: ClaimState(row[1], row[2]) for row in rows}
