"""Storing new messages and beginning their replies: one statement that reads and one that writes.

That is all that nearly every batch needs. What it does not fit is left as it was, for `store_and_claim`, which locks
and reads everything: copies, requests for further answers, what was deleted, what another worker changes at this
moment.

The writing statement moves a conversation's counters only from where the reading one found them, and adds rows only
to conversations whose counters it has moved. Whoever adds a request to a conversation moves its counters, and whoever
deletes it says so there: if neither has happened in between, a conversation that had no unfinished reply still has
none, and the first new one may begin (rule Order).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.records import MessageSubmitted
from duologue.store.dialect import record_set, to_json
from duologue.store.messages import INSERTED, THREAD, Incoming, StoredRequest, Thread, draw, rows_of, write_rows
from duologue.store.prepared import Prepared, is_one_of
from duologue.store.prompts import CHARACTER, NEXT_HISTORY, SETTINGS, next_prompt
from duologue.store.replies import Claimed
from duologue.store.schema import UNFINISHED, characters, conversations, messages, tombstones, users


class Begun(NamedTuple):
    """A message that was stored, with the request for its answer; `claim` is there if that was claimed as well."""

    stored: StoredRequest
    claim: Claimed | None


class _Open:
    """A conversation to which messages are added, and where its counters were when it was read."""

    def __init__(self, row: Sequence[Any]) -> None:
        self._busy, self._history, *self._settings = row[len(THREAD) :]
        self.thread = Thread(*row[: len(THREAD)])
        self.rows: list[dict[str, Any]] = []
        self._found = {"found_position": self.thread.next_position, "found_turn": self.thread.next_turn}

    def add(self, incoming: Incoming, owner: str | None, now: int) -> Begun:
        """Add a message; with an owner, its reply is claimed unless one before it has no outcome."""
        assert isinstance(incoming.record, MessageSubmitted)  # noqa: S101  # `_plain` has seen to that
        claimed_by = None if self._busy else owner
        self._busy = True
        stored = draw(incoming.record, self.thread)
        self.rows += rows_of(incoming, stored, now, claimed_by=claimed_by)
        return Begun(stored, None if claimed_by is None else self._claim(stored))

    def _claim(self, stored: StoredRequest) -> Claimed:
        prompt = next_prompt(self._settings, self._history, stored.content)
        return Claimed(reply_id=stored.reply_id, attempt=1, takeovers=0, taken_over=False, prompt=prompt)

    def moved(self) -> dict[str, Any]:
        """Return how the counters are to move."""
        thread = self.thread
        counters = {"next_position": thread.next_position, "next_turn": thread.next_turn}
        return {"id": thread.id, "title": thread.title} | counters | self._found


_known = messages.alias("known")
_unfinished = messages.alias("unfinished")

_READ: Final = Prepared(
    sa.select(
        *THREAD,
        sa.exists(sa.literal_column("1")).where(
            _unfinished.c.conversation_id == conversations.c.id, sa.text(f"unfinished.{UNFINISHED}")
        ),
        sa.case((is_one_of(conversations.c.id, "starting"), NEXT_HISTORY)),
        *SETTINGS,
    )
    .join(users, users.c.id == conversations.c.user_id)
    .join(characters, CHARACTER)
    .where(
        is_one_of(conversations.c.id),
        conversations.c.deleted_at.is_(None),
        users.c.deleted_at.is_(None),
        ~sa.exists(sa.literal_column("1")).where(is_one_of(_known.c.id, "message_ids")),
        ~sa.exists(sa.literal_column("1")).where(
            tombstones.c.kind == sa.literal_column("'message'"), is_one_of(tombstones.c.id, "message_ids")
        ),
    )
)

_grown = record_set(
    "grown",
    "threads",
    {
        **{name: conversations.c[name].type for name in ("id", "title", "next_position", "next_turn")},
        "found_position": conversations.c.next_position.type,
        "found_turn": conversations.c.next_turn.type,
    },
)
_moved = (
    sa.update(conversations)
    .where(
        conversations.c.id == _grown.c.id,
        conversations.c.next_position == _grown.c.found_position,
        conversations.c.next_turn == _grown.c.found_turn,
        conversations.c.deleted_at.is_(None),
    )
    .values(
        title=_grown.c.title,
        next_position=_grown.c.next_position,
        next_turn=_grown.c.next_turn,
        last_activity_at=sa.bindparam("now"),
        updated_at=sa.bindparam("now"),
    )
    .returning(conversations.c.id)
    .cte("moved")
)
_new = record_set("new", "rows", {name: messages.c[name].type for name in INSERTED})
_WRITE: Final = Prepared(
    sa.insert(messages)
    .from_select(
        list(INSERTED),
        sa.select(*(_new.c[name] for name in INSERTED)).join(_moved, _moved.c.id == _new.c.conversation_id),
    )
    .returning(messages.c.conversation_id)
)


def store_fresh(
    conn: Connection, batch: Sequence[Incoming], start: Collection[int], owner: str, now: int
) -> list[Begun | None]:
    """Store what of a batch is new and ordinary, and claim the replies that can start at once.

    Each of its two statements may be a transaction of its own.

    Args:
        batch: records in the order of the log.
        start: places in the batch of those whose replies this worker would begin now.
        owner: this worker's name, for people.
        now: milliseconds since the Unix epoch.

    Returns:
        An entry for each record, None for those that are left to `store_and_claim`: with each of them all of its
        conversation.
    """
    plain = _plain(batch)
    conversations_of = _read(conn, [batch[place] for place in plain], [batch[place] for place in plain & set(start)])
    begun: list[Begun | None] = [None] * len(batch)
    for place in sorted(plain):
        opened = conversations_of.get(batch[place].record.conversation_id)
        if opened is not None and opened.thread.uid == batch[place].record.uid:
            begun[place] = opened.add(batch[place], owner if place in start else None, now)
    stored = _write(conn, [each for each in conversations_of.values() if each.rows], now)
    return [entry if entry is not None and entry.stored.conversation_id in stored else None for entry in begun]


def _plain(batch: Sequence[Incoming]) -> set[int]:
    """Return the places of messages of which there is one copy, in conversations of which there is nothing else."""
    copies = Counter(incoming.record.message_id for incoming in batch)
    special = {
        incoming.record.conversation_id
        for incoming in batch
        if copies[incoming.record.message_id] > 1 or not isinstance(incoming.record, MessageSubmitted)
    }
    return {place for place, incoming in enumerate(batch) if incoming.record.conversation_id not in special}


def _read(conn: Connection, plain: Sequence[Incoming], starting: Sequence[Incoming]) -> dict[str, _Open]:
    """Return the conversations of new messages by their ids: none if one of the messages is known."""
    if not plain:
        return {}
    values = {
        "ids": list({incoming.record.conversation_id for incoming in plain}),
        "message_ids": [incoming.record.message_id for incoming in plain],
        "starting": list({incoming.record.conversation_id for incoming in starting}),
    }
    return {row[0]: _Open(row) for row in _READ.rows(conn, values)}


def _write(conn: Connection, grown: Sequence[_Open], now: int) -> set[str]:
    """Write what was added; return the conversations that have it. The others have changed since they were read."""
    if not grown:
        return set()
    rows = [row for each in grown for row in each.rows]
    if conn.dialect.name != "postgresql":  # nothing changes between two statements of one transaction there
        write_rows(conn, rows, [each.thread for each in grown], now)
        return {each.thread.id for each in grown}
    threads = [each.moved() for each in sorted(grown, key=lambda each: each.thread.id)]
    return {row[0] for row in _WRITE.rows(conn, {"threads": to_json(threads), "rows": to_json(rows), "now": now})}
