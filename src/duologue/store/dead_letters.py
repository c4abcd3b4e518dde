"""Records and messages that could not be processed, kept for an operator, who replays or drops them.

A letter is `open` until an operator has handled it. `replaying` is the guard of a replay: it is set before anything is
appended, so that two operators at once append once, and holds for `REPLAY_LEASE_MS`; of one whose process died in
between nobody knows whether its record is on the log, and it may be replayed again: every record that a replay appends
changes nothing when it comes twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.errors import Rejected
from duologue.domain.ids import new_id
from duologue.domain.records import INCOMING_TOPIC
from duologue.store.cursors import Place, decode_cursor, encode_cursor
from duologue.store.dialect import insert_missing, store_clock
from duologue.store.schema import conversations, dead_letters, messages, tombstones, users

DeadLetterState: TypeAlias = Literal["open", "replaying", "replayed", "dropped"]

REPLAY_LEASE_MS: Final = 60_000
"""How long a replay keeps others from the same letter: longer than any append takes."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that was given up: its bytes as they were, why, and after how many tries.

    `first_at` and `last_at` are those of the tries, milliseconds since the Unix epoch. `tenant`, `uid`, `message_id`
    and `conversation_id` are None if the bytes do not tell them. `attempt` is that of the failed reply, or of the
    refused outcome, None if it is about neither. `size` is that of the record; `value` may be its beginning only.
    """

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    size: int
    headers: Mapping[str, str]
    error: str
    cause: str
    tries: int
    first_at: int
    last_at: int
    tenant: str | None = None
    uid: str | None = None
    message_id: str | None = None
    conversation_id: str | None = None
    attempt: int | None = None


class DeadLetterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter in the store, but for what the record holds.

    `user_id` is the name on the wire of the user whom it is about, if there is such a user. `handled_at` and
    `handled_by` tell when, in milliseconds since the Unix epoch, and by whom it was replayed or dropped.
    """

    id: str
    state: DeadLetterState
    topic: str
    partition: int
    offset: int
    key: str
    size: int
    error: str
    cause: str
    tries: int
    first_at: int
    last_at: int
    tenant: str | None
    uid: str | None
    user_id: str | None
    message_id: str | None
    conversation_id: str | None
    attempt: int | None
    handled_at: int | None
    handled_by: str | None


class DeadLetterRow(DeadLetterSummary, frozen=True, kw_only=True):
    """A dead letter in the store. A dropped one has nothing left of its record."""

    value: bytes
    headers: Mapping[str, str]


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Some dead letters, the newest first. `next_cursor` is None on the last page."""

    items: list[DeadLetterSummary]
    next_cursor: str | None


class DeadLetterFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters: None does not restrict. `user` is a user's name on the wire, of whatever tenant."""

    state: DeadLetterState | None = None
    topic: str | None = None
    cause: str | None = None
    user: str | None = None


class BegunReplay(NamedTuple):
    """A replay that nobody else can begin now. `begun_at` identifies it."""

    letter: DeadLetterRow
    begun_at: int


_ALL: Final = DeadLetterFilter()
_SUMMARIES: Final = sa.select(
    *(column for column in dead_letters.c if column.name not in ("user_id", "value", "headers")),
    dead_letters.c.user_id.label("uid"),
    users.c.userid.label("user_id"),
).join_from(dead_letters, users, users.c.id == dead_letters.c.user_id, isouter=True)
_ROW: Final = _SUMMARIES.add_columns(dead_letters.c.value, dead_letters.c.headers).where(
    dead_letters.c.id == sa.bindparam("id")
)
_PAGE: Final = (
    _SUMMARIES.where(
        sa.tuple_(dead_letters.c.last_at, dead_letters.c.id)
        < sa.tuple_(sa.bindparam("at", type_=sa.BigInteger), sa.bindparam("id", type_=sa.Text))
    )
    .order_by(dead_letters.c.last_at.desc(), dead_letters.c.id.desc())
    .limit(sa.bindparam("limit"))
)
_END: Final = Place(2**62)

_IS_FREE: Final = sa.or_(
    dead_letters.c.state == "open",
    sa.and_(dead_letters.c.state == "replaying", dead_letters.c.handled_at < store_clock() - REPLAY_LEASE_MS),
)
_BEGIN: Final = (
    sa.update(dead_letters)
    .where(dead_letters.c.id == sa.bindparam("letter_id"), _IS_FREE)
    .values(state="replaying", handled_at=store_clock(), handled_by=sa.bindparam("by"))
    .returning(dead_letters.c.handled_at)
)
_IS_BEGUN: Final = sa.and_(dead_letters.c.id == sa.bindparam("letter_id"), dead_letters.c.state == "replaying")
_END_REPLAY: Final = sa.update(dead_letters).where(_IS_BEGUN).values(state="replayed")
_UNDO: Final = (
    sa.update(dead_letters)
    .where(_IS_BEGUN, dead_letters.c.handled_at == sa.bindparam("begun_at"))
    .values(state="open", handled_at=None, handled_by=None)
)
_DROP: Final = (
    sa.update(dead_letters)
    .where(dead_letters.c.id == sa.bindparam("letter_id"), sa.or_(_IS_FREE, dead_letters.c.state == "replayed"))
    .values(state="dropped", handled_at=store_clock(), handled_by=sa.bindparam("by"), value=b"", headers={})
)
_CURRENT: Final = (
    sa.select(messages.c.attempt, messages.c.state)
    .where(messages.c.reply_to == sa.bindparam("message_id"))
    .order_by(messages.c.generation.desc())
    .limit(1)
)
_TOMBSTONE: Final = sa.select(tombstones.c.id).where(
    tombstones.c.kind == "message", tombstones.c.id == sa.bindparam("message_id")
)


def insert_dead_letters(conn: Connection, letters: Sequence[DeadLetter]) -> None:
    """Keep these. One that is there already, by its topic, partition and offset, is left as it is."""
    if letters:
        insert_missing(conn, dead_letters, [_row(letter) for letter in letters])


def keep_dead_letter(conn: Connection, letter: DeadLetter) -> None:
    """Keep a letter by itself, unless its user, conversation or message was deleted: then nothing of it is to stay."""
    if not _is_deleted(conn, letter):
        insert_dead_letters(conn, [letter])


def count_dead_letters(conn: Connection) -> int:
    """Return how many there are."""
    return conn.scalar(sa.select(sa.func.count()).select_from(dead_letters)) or 0


def list_dead_letters(
    conn: Connection, cursor: str | None, limit: int, which: DeadLetterFilter = _ALL, now: int = 0
) -> DeadLetterPage:
    """Return a page, the newest first.

    Args:
        cursor: `next_cursor` of the page before; `limit` is how many at most.
        which: restricts them. Among the `open` ones are those whose replay has begun and did not end in its time.
        now: milliseconds since the Unix epoch, where the store has no clock of its own.

    Raises:
        Rejected: the cursor is none of ours.
    """
    place = decode_cursor(cursor) if cursor else _END
    statement = _PAGE.where(*_conditions(which))
    values = {"at": place.at, "id": place.id, "limit": limit + 1, "now": now}
    rows = conn.execute(statement, values).mappings().all()
    items = [DeadLetterSummary(**row) for row in rows[:limit]]
    more = encode_cursor(Place(items[-1].last_at, items[-1].id)) if len(rows) > limit else None
    return DeadLetterPage(items, more)


def read_dead_letter(conn: Connection, letter_id: str) -> DeadLetterRow:
    """Return a letter with what its record holds.

    Raises:
        Rejected: `dead_letter_not_found`.
    """
    row = conn.execute(_ROW, {"id": letter_id}).mappings().first()
    if row is None:
        raise Rejected("dead_letter_not_found", "There is no such dead letter.")
    return DeadLetterRow(**row)


def begin_replay(conn: Connection, letter_id: str, by: str, now: int) -> BegunReplay:
    """Take a letter for a replay: until `end_replay`, `undo_replay` or the end of the lease nobody else can.

    Args:
        letter_id: which one; `by` is the operator's name.
        now: milliseconds since the Unix epoch, where the store has no clock of its own.

    Raises:
        Rejected: `dead_letter_not_found`; `dead_letter_replaying`, `dead_letter_replayed` or `dead_letter_dropped`:
            somebody handles it, or has; `dead_letter_incomplete`: not all of its record was kept;
            `dead_letter_superseded`: its message was deleted, or answered again since.
    """
    begun_at = conn.scalar(_BEGIN, {"letter_id": letter_id, "by": by, "now": now})
    letter = read_dead_letter(conn, letter_id)
    if begun_at is None:
        _refuse(letter)
    if (reason := _superseded(conn, letter)) is not None:
        raise Rejected("dead_letter_superseded", reason)
    if not is_failed_reply(letter) and len(letter.value) < letter.size:
        raise Rejected("dead_letter_incomplete", "The record is too large to be replayed: only its beginning is kept.")
    return BegunReplay(letter, begun_at)


def end_replay(conn: Connection, letter_id: str) -> DeadLetterSummary:
    """What was to be appended is on the log. Return the letter as it stands now.

    Raises:
        Rejected: `dead_letter_not_found`: it was deleted meanwhile.
    """
    conn.execute(_END_REPLAY, {"letter_id": letter_id})
    return read_dead_letter(conn, letter_id)


def undo_replay(conn: Connection, begun: BegunReplay) -> None:
    """What was to be appended was not acknowledged: the letter is open again, unless another replay has it now."""
    conn.execute(_UNDO, {"letter_id": begun.letter.id, "begun_at": begun.begun_at})


def drop_dead_letter(conn: Connection, letter_id: str, by: str, now: int) -> DeadLetterSummary:
    """Give a letter up for good: what its record holds is removed; the row stays, so that the record does not come
    back as a new letter when it is read again. One that is dropped already is left as it is.

    Raises:
        Rejected: `dead_letter_not_found`, or `dead_letter_replaying`.
    """
    conn.execute(_DROP, {"letter_id": letter_id, "by": by, "now": now})
    letter = read_dead_letter(conn, letter_id)
    if letter.state != "dropped":
        _refuse(letter)
    return letter


def is_failed_reply(letter: DeadLetterSummary) -> bool:
    """Tell whether a letter is about a reply that failed; the others are about records that could not be processed."""
    return letter.topic == INCOMING_TOPIC and letter.attempt is not None


def _row(letter: DeadLetter) -> dict[str, Any]:
    row = msgspec.structs.asdict(letter)
    row["user_id"] = row.pop("uid")
    return row | {"id": new_id(), "state": "open", "headers": dict(letter.headers)}


def _is_deleted(conn: Connection, letter: DeadLetter) -> bool:
    """Tell whether somebody has deleted what a letter is about; until this transaction ends nobody can."""
    for table, row_id in ((conversations, letter.conversation_id), (users, letter.uid)):
        if row_id is not None:
            held = sa.select(table.c.deleted_at).where(table.c.id == row_id).with_for_update(read=True)
            if conn.scalar(held) is not None:
                return True
    return letter.message_id is not None and _is_message_deleted(conn, letter.message_id)


def _is_message_deleted(conn: Connection, message_id: str) -> bool:
    return conn.scalar(_TOMBSTONE, {"message_id": message_id}) is not None


def _conditions(which: DeadLetterFilter) -> list[sa.ColumnElement[bool]]:
    table = dead_letters.c
    equal = ((table.topic, which.topic), (table.cause, which.cause))
    conditions: list[sa.ColumnElement[bool]] = [column == value for column, value in equal if value is not None]
    if which.state is not None:
        conditions.append(_IS_FREE if which.state == "open" else table.state == which.state)
    if which.user is not None:
        conditions.append(table.user_id.in_(sa.select(users.c.id).where(users.c.userid == which.user)))
    return conditions


def _refuse(letter: DeadLetterRow) -> NoReturn:
    words = {"replaying": "is being replayed", "replayed": "was replayed", "dropped": "was dropped"}
    by = f" by {letter.handled_by}" if letter.handled_by else ""
    raise Rejected(f"dead_letter_{letter.state}", f"This dead letter {words.get(letter.state, 'is open')}{by}.")


def _superseded(conn: Connection, letter: DeadLetterRow) -> str | None:
    """Return why a replay would have no effect, None if it may have one."""
    if letter.message_id is None:
        return None
    if _is_message_deleted(conn, letter.message_id):
        return "The message was deleted."
    if letter.attempt is None:
        return None
    current = conn.execute(_CURRENT, {"message_id": letter.message_id}).first()
    if current is None:
        return "The message is not in the store any more."
    attempt, state = current
    if attempt != letter.attempt or (is_failed_reply(letter) and state != "failed"):
        return "The message was answered again since, or is being answered."
    return None
