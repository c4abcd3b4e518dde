"""Storing what users ask for, in the order of the log: each message once with a request for its first answer, and
each further request for another one (rule Versions)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.ids import new_id
from duologue.domain.records import MessageSubmitted, RegenerateRequested
from duologue.store.prepared import Prepared, is_one_of
from duologue.store.schema import conversations, messages, tombstones, users
from duologue.store.users import deleted_users

ReplyState: TypeAlias = Literal["queued", "generating", "complete", "failed", "stopped"]
RefusedReason: TypeAlias = Literal[
    "user_deleted",
    "conversation_deleted",
    "conversation_unknown",
    "other_conversation",
    "message_deleted",
    "message_unknown",
    "superseded",
]

TITLE_CHARACTERS: Final = 60


class Incoming(msgspec.Struct, frozen=True):
    """A record as it was read from the log."""

    record: MessageSubmitted | RegenerateRequested
    topic: str
    partition: int
    offset: int


class StoredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an answer, as it stands in the store. `fresh` tells that this call has stored it.

    `user_id` is the name on the wire, `uid` the user's row. `content`, `metadata` and `client_id` are the user
    message's, `model` the one that it asks for. `submitted_at` is milliseconds since the Unix epoch at the edge.
    """

    reply_id: str
    message_id: str
    conversation_id: str
    tenant: str
    user_id: str
    uid: str
    position: int
    generation: int
    turn: int
    state: ReplyState
    attempt: int
    takeovers: int
    published: bool
    submitted_at: int
    correlation_id: str
    content: str
    client_id: str
    metadata: dict[str, Any] | None = None
    model: str | None = None
    fresh: bool = False


class Refused(msgspec.Struct, frozen=True):
    """A record that is done without outcome, and why."""

    message_id: str
    reason: RefusedReason


Stored: TypeAlias = StoredRequest | Refused


class Thread(msgspec.Struct):
    """A conversation while messages are added to it."""

    id: str
    uid: str
    title: str | None
    next_position: int
    next_turn: int
    deleted: bool = False
    user_deleted: bool = False
    grown: bool = False


class _View(msgspec.Struct):
    """What a batch meets in the store, kept up to date while its records enter one by one."""

    threads: dict[str, Thread]
    versions: dict[str, list[StoredRequest]]
    deleted: set[str]
    deleted_users: set[str]

    def enter(self, record: MessageSubmitted | RegenerateRequested) -> Stored:
        """Decide on one record; a new request takes its place at once, so that copies behind it find it."""
        thread = self.threads.get(record.conversation_id)
        if thread is None:
            return Refused(record.message_id, self._reason_without_conversation(record))
        versions = self.versions.get(record.message_id, [])
        if reason := self._refusal(record, thread, versions):
            return Refused(record.message_id, reason)
        if isinstance(record, RegenerateRequested):
            return self._regenerate(record, versions, thread)
        if versions:
            return versions[0]
        request = draw(record, thread)
        self.versions[record.message_id] = [msgspec.structs.replace(request, fresh=False)]
        return request

    def _regenerate(self, record: RegenerateRequested, versions: Sequence[StoredRequest], thread: Thread) -> Stored:
        """Ask for another version, if the one that the record names has ended and nobody has asked already."""
        if not versions:
            return Refused(record.message_id, "message_unknown")
        for version, successor in zip(versions, [*versions[1:], None], strict=True):
            if version.attempt == record.attempt and version.state not in ("queued", "generating"):
                return successor or self._draw_version(record, version, thread)
        return Refused(record.message_id, "superseded")

    def _draw_version(self, record: RegenerateRequested, replaced: StoredRequest, thread: Thread) -> StoredRequest:
        request = msgspec.structs.replace(
            replaced,
            reply_id=new_id(),
            generation=replaced.generation + 1,
            turn=thread.next_turn,
            state="queued",
            attempt=0,
            takeovers=0,
            published=False,
            submitted_at=record.requested_at,
            correlation_id=record.correlation_id,
            fresh=True,
        )
        thread.next_turn += 1
        thread.grown = True
        self.versions[record.message_id].append(msgspec.structs.replace(request, fresh=False))
        return request

    def _refusal(
        self, record: MessageSubmitted | RegenerateRequested, thread: Thread, versions: Sequence[StoredRequest]
    ) -> RefusedReason | None:
        """Tell why a record's conversation does not take it: None if it does (rules Users, Conversations)."""
        if thread.uid != record.uid:
            return "conversation_unknown"
        if thread.user_deleted:
            return "user_deleted"
        if thread.deleted:
            return "conversation_deleted"
        if record.message_id in self.deleted:
            return "message_deleted"
        other = versions and versions[0].conversation_id != record.conversation_id
        return "other_conversation" if other else None

    def _reason_without_conversation(self, record: MessageSubmitted | RegenerateRequested) -> RefusedReason:
        return "user_deleted" if record.uid in self.deleted_users else "conversation_unknown"


THREAD: Final = (
    conversations.c.id,
    conversations.c.user_id,
    conversations.c.title,
    conversations.c.next_position,
    conversations.c.next_turn,
)
"""The columns that a `Thread` begins with."""

_LOCK: Final = Prepared(
    sa.select(
        *THREAD,
        conversations.c.deleted_at.is_not(None),
        users.c.deleted_at.is_not(None),
    )
    .join(users, users.c.id == conversations.c.user_id)
    .where(is_one_of(conversations.c.id))
    .order_by(conversations.c.id)
    .with_for_update(of=conversations)  # PostgreSQL only; SQLite has one writer at a time
)

_KNOWN: Final = Prepared(
    sa.union_all(
        sa.select(messages.c.id, sa.false().label("deleted")).where(is_one_of(messages.c.id)),
        sa.select(tombstones.c.id, sa.true()).where(
            tombstones.c.kind == sa.literal_column("'message'"),
            is_one_of(tombstones.c.id),
        ),
    )
)

_reply = messages.alias("reply")
_STANDING: Final = (
    sa.select(
        _reply.c.id.label("reply_id"),
        messages.c.id.label("message_id"),
        messages.c.conversation_id,
        messages.c.tenant,
        users.c.userid.label("user_id"),
        messages.c.user_id.label("uid"),
        messages.c.position,
        _reply.c.generation,
        _reply.c.turn,
        _reply.c.state,
        _reply.c.attempt,
        _reply.c.takeovers,
        _reply.c.published,
        _reply.c.submitted_at,
        _reply.c.correlation_id,
        messages.c.content,
        messages.c.client_id,
        messages.c.metadata,
        _reply.c.requested_model.label("model"),
    )
    .join(_reply, _reply.c.reply_to == messages.c.id)
    .join(users, users.c.id == messages.c.user_id)
)
_VERSIONS: Final = _STANDING.where(is_one_of(messages.c.id)).order_by(messages.c.id, _reply.c.generation)

INSERTED: Final = (
    "id",
    "tenant",
    "user_id",
    "conversation_id",
    "role",
    "position",
    "generation",
    "reply_to",
    "turn",
    "state",
    "attempt",
    "owner",
    "claimed_at",
    "content",
    "metadata",
    "client_id",
    "requested_model",
    "correlation_id",
    "topic",
    "partition",
    "offset",
    "submitted_at",
    "created_at",
    "updated_at",
)
_INSERT: Final = Prepared(
    sa.insert(messages).values({name: sa.bindparam(name, type_=messages.c[name].type) for name in INSERTED})
)

_GROW: Final = Prepared(
    sa.update(conversations)
    .where(conversations.c.id == sa.bindparam("thread_id"))
    .values(
        title=sa.bindparam("title"),
        next_position=sa.bindparam("next_position"),
        next_turn=sa.bindparam("next_turn"),
        last_activity_at=sa.bindparam("now"),
        updated_at=sa.bindparam("now"),
    )
)


def store_messages(conn: Connection, batch: Sequence[Incoming], now: int) -> list[Stored]:
    """Store a batch in the order of the log: user messages with dense positions, each with a request for an answer, and
    requests for further answers.

    Returns:
        One entry for each record, in the batch's order. A copy (of a record from an earlier batch or this one) returns
        the request that the first one has made, as it stands, with `fresh` False.
    """
    if not batch:
        return []
    # Locked first and in one order: two consumers that store for the same conversations cannot deadlock, and what
    # is read below cannot change before the commit (rule Order).
    threads = _lock_threads(conn, {incoming.record.conversation_id for incoming in batch})
    versions, deleted = _standing(conn, [incoming.record.message_id for incoming in batch])
    view = _View(
        threads=threads,
        versions=versions,
        deleted=deleted,
        deleted_users=_deleted_strangers(conn, batch, threads),
    )
    rows: list[dict[str, Any]] = []
    entries: list[Stored] = []
    for incoming in batch:
        entry = view.enter(incoming.record)
        if isinstance(entry, StoredRequest) and entry.fresh:
            rows += rows_of(incoming, entry, now)
        entries.append(entry)
    write_rows(conn, rows, threads.values(), now)
    return entries


def _lock_threads(conn: Connection, ids: Iterable[str]) -> dict[str, Thread]:
    return {row[0]: Thread(*row) for row in _LOCK.rows(conn, {"ids": list(ids)})}


def _standing(conn: Connection, message_ids: Sequence[str]) -> tuple[dict[str, list[StoredRequest]], set[str]]:
    """Return all requests for answers to those of these messages that are stored, by generation, and which of them were
    deleted: nothing in the common case, at the price of one statement."""
    known = _KNOWN.rows(conn, {"ids": message_ids})
    versions: dict[str, list[StoredRequest]] = {}
    if stored := [row[0] for row in known if not row[1]]:
        for row in conn.execute(_VERSIONS, {"ids": stored}).mappings():
            versions.setdefault(row["message_id"], []).append(StoredRequest(**row))
    return versions, {row[0] for row in known if row[1]}


def _deleted_strangers(conn: Connection, batch: Sequence[Incoming], threads: dict[str, Thread]) -> set[str]:
    """Return which users of records without a conversation were deleted: nothing to ask in the common case."""
    strangers = {incoming.record.uid for incoming in batch if incoming.record.conversation_id not in threads}
    return deleted_users(conn, sorted(strangers))


def draw(record: MessageSubmitted, thread: Thread) -> StoredRequest:
    """Give a new message the next position of its conversation and its request the next turn."""
    position, turn = thread.next_position, thread.next_turn
    thread.next_position += 1
    thread.next_turn += 1
    thread.title = thread.title or title_of(record.content)
    thread.grown = True
    return StoredRequest(
        reply_id=new_id(),
        message_id=record.message_id,
        conversation_id=record.conversation_id,
        tenant=record.tenant,
        user_id=record.user_id,
        uid=record.uid,
        position=position,
        generation=1,
        turn=turn,
        state="queued",
        attempt=0,
        takeovers=0,
        published=False,
        submitted_at=record.submitted_at,
        correlation_id=record.correlation_id,
        content=record.content,
        client_id=record.client_id,
        metadata=record.metadata,
        model=record.model,
        fresh=True,
    )


def rows_of(
    incoming: Incoming, request: StoredRequest, now: int, *, claimed_by: str | None = None
) -> list[dict[str, Any]]:
    """Return the row of a message, if it is new, and that of the request for its answer, which a worker may have
    claimed already. Both have every column, so that one statement inserts both kinds."""
    shared = {
        "tenant": request.tenant,
        "user_id": request.uid,
        "conversation_id": request.conversation_id,
        "position": request.position,
        "correlation_id": request.correlation_id,
        "topic": incoming.topic,
        "partition": incoming.partition,
        "offset": incoming.offset,
        "submitted_at": request.submitted_at,
        "created_at": now,
        "updated_at": now,
    }
    message = shared | {
        "id": request.message_id,
        "role": "user",
        "generation": 0,
        "reply_to": None,
        "turn": None,
        "state": "stored",
        "attempt": 0,
        "owner": None,
        "claimed_at": None,
        "content": request.content,
        "metadata": request.metadata,
        "client_id": request.client_id,
        "requested_model": request.model,
    }
    reply = shared | {
        "id": request.reply_id,
        "role": "assistant",
        "generation": request.generation,
        "reply_to": request.message_id,
        "turn": request.turn,
        "state": "queued" if claimed_by is None else "generating",
        "attempt": 0 if claimed_by is None else 1,
        "owner": claimed_by,
        "claimed_at": None if claimed_by is None else now,
        "content": "",
        "metadata": None,
        "client_id": None,
        "requested_model": request.model,
    }
    return [message, reply] if request.generation == 1 else [reply]


def write_rows(conn: Connection, rows: Sequence[dict[str, Any]], threads: Iterable[Thread], now: int) -> None:
    """Write rows, and the counters of the conversations that have grown by them; the caller has these locked."""
    grown = [
        {
            "thread_id": thread.id,
            "title": thread.title,
            "next_position": thread.next_position,
            "next_turn": thread.next_turn,
            "now": now,
        }
        for thread in threads
        if thread.grown
    ]
    if rows:
        _INSERT.run(conn, rows)
        _GROW.run(conn, grown)


def title_of(content: str) -> str:
    """Make a conversation's title of its first message: one line of at most `TITLE_CHARACTERS`."""
    line = " ".join(content[: TITLE_CHARACTERS * 4].split())
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[: TITLE_CHARACTERS - 1]
    words = cut.rpartition(" ")[0]
    return (words if len(words) > TITLE_CHARACTERS // 2 else cut) + "…"
