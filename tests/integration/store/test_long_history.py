"""A conversation of 10,000 messages costs no more than one of 100: what the program runs, as the databases run it.

Each function is called on both, and every statement that it executes is explained right before it runs.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW
from tests.support.query_plans import plan_nodes

from duologue.ai_consumer.tick import run_tick
from duologue.cluster.postgres import PostgresServer
from duologue.domain.ids import message_id
from duologue.domain.records import MessageSubmitted, RegenerateRequested
from duologue.store.conversations import default_conversation, list_conversations, owned_conversation
from duologue.store.cursors import Place, encode_cursor
from duologue.store.database import run_once
from duologue.store.dead_letters import DeadLetter, begin_replay, keep_dead_letter, list_dead_letters
from duologue.store.deletion import delete_message
from duologue.store.fresh import store_fresh
from duologue.store.history import changed_messages, conversation_messages
from duologue.store.messages import Incoming, StoredRequest, store_messages
from duologue.store.outcomes import Completion, ReplyError, complete, mark_published, outcome
from duologue.store.prepared import Prepared
from duologue.store.prompts import HISTORY_LIMIT
from duologue.store.replies import advance_attempt, claim, mark_leaving, read_claims
from duologue.store.stops import Seized, stop_unwritten
from duologue.store.targets import find_target
from duologue.store.users import user_by_id

OTHERS: Final = 200
MOST_ROWS: Final = 4 * HISTORY_LIMIT
"""Of `messages` that one statement may read: a prompt's history, and a page with what is around it."""


@dataclass(frozen=True)
class Thread:
    """A conversation with `messages` messages, each second one the answer to that before it."""

    id: str
    uid: str
    user_id: str
    messages: int

    @property
    def positions(self) -> int:
        return self.messages // 2

    def question(self, position: int) -> str:
        return f"{self.id}-{position}-user"

    def answer(self, position: int) -> str:
        return f"{self.id}-{position}-assistant"

    def says(self) -> Incoming:
        """The next message, as it is on the log."""
        client_id, content = "next", "And now?"
        record = MessageSubmitted(
            tenant="default",
            user_id=self.user_id,
            uid=self.uid,
            message_id=message_id(
                tenant="default", uid=self.uid, client_id=client_id, content=content, conversation_id=None
            ),
            conversation_id=self.id,
            client_id=client_id,
            content=content,
            submitted_at=NOW,
            correlation_id="c",
        )
        return Incoming(record, "incoming_messages", 0, 1_000_000)

    def asks_again(self) -> Incoming:
        """A request for another answer to the last message."""
        record = RegenerateRequested(
            tenant="default",
            user_id=self.user_id,
            uid=self.uid,
            message_id=self.question(self.positions),
            conversation_id=self.id,
            attempt=1,
            requested_at=NOW,
            correlation_id="c",
        )
        return Incoming(record, "incoming_messages", 0, 1_000_001)


LONG: Final = Thread("long", "u0", "user0", 10_000)
SHORT: Final = Thread("short", "u1", "user1", 100)

_NUMBERS: Final = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {}) "
_FILL: Final = (
    *(
        f"INSERT INTO users (id, tenant, userid, kind, name, created_at, updated_at)"
        f" VALUES ('u{n}', 'default', 'user{n}', 'guest', '', {NOW}, {NOW})"
        for n in (0, 1)
    ),
    *(
        f"INSERT INTO conversations (id, tenant, user_id, status, settings, is_default, next_position, next_turn,"
        f" created_at, updated_at, last_activity_at) VALUES ('{thread.id}', 'default', '{thread.uid}', 'active',"
        f" '{{}}', true, {thread.positions + 1}, {thread.positions + 1}, {NOW}, {NOW}, {NOW})"
        for thread in (LONG, SHORT)
    ),
    _NUMBERS.format(OTHERS) + "INSERT INTO conversations (id, tenant, user_id, status, settings, is_default,"
    " next_position, next_turn, created_at, updated_at, last_activity_at) SELECT 'other' || n, 'default',"
    f" 'u' || (n % 2), 'active', '{{}}', false, 31, 31, {NOW}, {NOW}, {NOW} - n FROM numbers",
    _NUMBERS.format(LONG.positions) + "INSERT INTO messages (id, tenant, user_id, conversation_id, role, position,"
    " generation, reply_to, turn, state, attempt, published, content, correlation_id, topic, partition,"
    ' "offset", submitted_at, created_at, updated_at)'
    " SELECT conversations.id || '-' || n || '-' || role, 'default', user_id, conversations.id, role, n, generation,"
    " CASE generation WHEN 1 THEN conversations.id || '-' || n || '-user' END, CASE generation WHEN 1 THEN n END,"
    " CASE generation WHEN 1 THEN 'complete' ELSE 'stored' END, generation, generation = 1, 'what was said', '',"
    f" 'incoming_messages', 0, n, {NOW}, {NOW}, {NOW} - 20000 + n"
    " FROM conversations JOIN numbers ON n < next_position"
    " CROSS JOIN (SELECT 'user' AS role, 0 AS generation UNION ALL SELECT 'assistant', 1) AS kinds",
    "ANALYZE",
)


def _fill(conn: Connection) -> None:
    for statement in _FILL:
        conn.exec_driver_sql(statement)


# --- What the program does with a conversation ---


def next_message(conn: Connection, thread: Thread) -> None:
    """Store, claim, and read the prompt."""
    tick = run_tick(conn, [thread.says()], [0], [], "me", NOW)
    (claimed,) = tick.claims.values()
    assert len(claimed.prompt.history) == HISTORY_LIMIT


def fresh_message(conn: Connection, thread: Thread) -> None:
    """The same in the two statements of the common case."""
    (entry,) = store_fresh(conn, [thread.says()], {0}, "me", NOW)
    assert entry is not None
    assert entry.claim is not None
    assert len(entry.claim.prompt.history) == HISTORY_LIMIT


def copy_of_a_message(conn: Connection, thread: Thread) -> None:
    next_message(conn, thread)
    (entry,) = run_tick(conn, [thread.says()], [0], [], "another", NOW).stored
    assert isinstance(entry, StoredRequest)
    assert not entry.fresh


def another_answer(conn: Connection, thread: Thread) -> None:
    tick = run_tick(conn, [thread.asks_again()], [0], [], "me", NOW)
    assert len(tick.claims) == 1


def waiting_reply(conn: Connection, thread: Thread) -> None:
    """One that waited for its turn, and one that still does."""
    first, second = store_messages(conn, [thread.asks_again(), thread.says()], NOW)
    assert isinstance(first, StoredRequest)
    assert isinstance(second, StoredRequest)
    tick = run_tick(conn, [], [], [second.reply_id], "me", NOW)
    assert tick.claims == {}
    assert tick.standing[second.reply_id].state == "queued"
    assert len(run_tick(conn, [], [], [first.reply_id], "me", NOW).claims) == 1


def whole_reply(conn: Connection, thread: Thread) -> None:
    """From the claim to the publication, with a further try and a handover on the way."""
    (entry,) = store_messages(conn, [thread.says()], NOW)
    assert isinstance(entry, StoredRequest)
    (held,) = claim(conn, [entry.reply_id], "me", NOW)
    attempt = advance_attempt(conn, held.reply_id, held.attempt, NOW)
    assert attempt == held.attempt + 1
    mark_leaving(conn, {held.reply_id: attempt}, 1_000, NOW)
    assert read_claims(conn, [held.reply_id])[held.reply_id].attempt == attempt
    end = Completion(reply_id=held.reply_id, attempt=attempt, state="complete", completed_at=NOW, content="Now.")
    assert complete(conn, [end], [thread.answer(1)], NOW) == {held.reply_id}
    (record,) = outcome(conn, [held.reply_id])
    mark_published(conn, [record.reply_id])


def failed_reply(conn: Connection, thread: Thread) -> None:
    """One that fails, its letter, and an operator's replay."""
    (entry,) = store_messages(conn, [thread.says()], NOW)
    assert isinstance(entry, StoredRequest)
    (held,) = claim(conn, [entry.reply_id], "me", NOW)
    end = Completion(
        reply_id=held.reply_id,
        attempt=held.attempt,
        state="failed",
        completed_at=NOW,
        error=ReplyError("model_error", "It failed.", temporary=True),
    )
    letter = DeadLetter(
        topic="incoming_messages",
        partition=0,
        offset=7,
        key=thread.id,
        value=b"{}",
        size=2,
        headers={},
        error="It failed.",
        cause="model_error",
        tries=7,
        first_at=NOW,
        last_at=NOW,
        tenant="default",
        uid=thread.uid,
        message_id=entry.message_id,
        conversation_id=thread.id,
        attempt=held.attempt,
    )
    complete(conn, [end], [], NOW, [letter])
    keep_dead_letter(conn, msgspec.structs.replace(letter, offset=8))
    listed = list_dead_letters(conn, None, 9, now=NOW).items
    assert len(listed) == 2
    assert begin_replay(conn, listed[0].id, "operator", NOW).letter.message_id == entry.message_id


def stops(conn: Connection, thread: Thread) -> None:
    """Of a reply that waits, and of one that another worker writes."""
    running, queued = store_messages(conn, [thread.asks_again(), thread.says()], NOW)
    assert isinstance(running, StoredRequest)
    assert isinstance(queued, StoredRequest)
    claim(conn, [running.reply_id], "another", NOW)
    assert stop_unwritten(conn, queued.reply_id, "me", NOW, seize=True) is not None
    assert isinstance(stop_unwritten(conn, running.reply_id, "me", NOW, seize=True), Seized)


def targets(conn: Connection, thread: Thread) -> None:
    """What the edge asks before a stop or a regenerate: of the last message and of the first."""
    last = find_target(conn, thread.uid, thread.question(thread.positions))
    first = find_target(conn, thread.uid, thread.question(1))
    assert last is not None
    assert first is not None
    assert (first.is_last, last.is_last) == (False, True)


def pages(conn: Connection, thread: Thread) -> None:
    """Of the history: the newest, one in the middle, the last but one."""
    newest = conversation_messages(conn, thread.uid, thread.id)
    middle = conversation_messages(conn, thread.uid, thread.id, thread.question(thread.positions // 2 + 5), 20)
    oldest = conversation_messages(conn, thread.uid, thread.id, thread.question(12), 20)
    assert [len(page.items) for page in (newest, middle, oldest)] == [50, 20, 20]


def changes(conn: Connection, thread: Thread) -> None:
    """What a client reads after `recovered: false`, and back from there."""
    newest = changed_messages(conn, thread.uid, now=NOW)
    assert newest.previous_cursor is not None
    assert len(changed_messages(conn, thread.uid, before=newest.previous_cursor, now=NOW).items) == 50
    after = encode_cursor(Place(NOW - 20_000 + 10))
    assert len(changed_messages(conn, thread.uid, after=after, now=NOW).items) == 50


def connecting(conn: Connection, thread: Thread) -> None:
    """What the edge reads for a new connection."""
    user = user_by_id(conn, thread.uid)
    assert user is not None
    assert default_conversation(conn, user, None, NOW).id == thread.id
    assert owned_conversation(conn, thread.uid, thread.id) is not None


def listing(conn: Connection, thread: Thread) -> None:
    page = list_conversations(conn, thread.uid)
    assert page.items[0].id == thread.id
    assert len(list_conversations(conn, thread.uid, cursor=page.next_cursor).items) == 50


def deletion(conn: Connection, thread: Thread) -> None:
    """Of one message with its answer."""
    assert delete_message(conn, thread.uid, thread.question(thread.positions - 3), NOW)


WORK: Final[Mapping[str, Callable[[Connection, Thread], None]]] = {
    work.__name__: work
    for work in (
        next_message,
        fresh_message,
        copy_of_a_message,
        another_answer,
        waiting_reply,
        whole_reply,
        failed_reply,
        stops,
        targets,
        pages,
        changes,
        connecting,
        listing,
        deletion,
    )
}


# --- How it is looked at ---


class _Undone(Exception):
    """What was done is not to stay."""


@dataclass
class Explained:
    """The statements that were executed, each with its plan."""

    explain: Callable[[Connection, str, Sequence[Any]], list[Any]]
    plans: list[tuple[str, list[Any]]] = field(default_factory=list)
    busy: bool = False

    def look(self, conn: Connection, text: str, values: Sequence[Any]) -> None:
        if not self.busy and not text.startswith(("SAVEPOINT", "ROLLBACK", "RELEASE")):
            self.busy = True
            self.plans.append((text, self.explain(conn, text, values)))
            self.busy = False


def explained(
    url: str,
    name: str,
    explain: Callable[[Connection, str, Sequence[Any]], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[str, list[Any]]]:
    """Do that work with the long conversation; return each statement that it executed, with its plan."""
    seen = Explained(explain)
    rows, run = Prepared.rows, Prepared.run

    def looked_at_rows(self: Prepared, conn: Connection, values: Mapping[str, Any]) -> Sequence[Any]:
        plan = self.plan(conn.dialect)
        seen.look(conn, plan.text, plan.bind(values))
        return rows(self, conn, values)

    def looked_at_run(self: Prepared, conn: Connection, many: Sequence[Mapping[str, Any]]) -> None:
        for values in many:  # one by one, so that each is explained as it will find the rows
            plan = self.plan(conn.dialect)
            seen.look(conn, plan.text, plan.bind(values))
            run(self, conn, [values])

    monkeypatch.setattr(Prepared, "rows", looked_at_rows)
    monkeypatch.setattr(Prepared, "run", looked_at_run)

    def query(conn: Connection) -> None:
        @sa.event.listens_for(conn, "before_cursor_execute")
        def look(connection: Connection, _cursor: object, text: str, values: Any, _context: object, many: bool) -> None:
            seen.look(connection, text, values[0] if many else values)

        WORK[name](conn, LONG)
        raise _Undone

    with pytest.raises(_Undone):
        run_once(url, query)
    assert seen.plans
    return seen.plans


# --- SQLite ---


@pytest.fixture(scope="module")
def filled_file(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of SQLite with all these messages: none of the tests leaves anything in it."""
    path = tmp_path_factory.mktemp("history") / "filled.db"
    shutil.copyfile(migrated_file, path)
    run_once(f"sqlite:///{path}", _fill)
    return f"sqlite:///{path}"


def _query_plan(conn: Connection, text: str, values: Sequence[Any]) -> list[Any]:
    return [row[3] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", tuple(values))]


@pytest.mark.parametrize("name", WORK)
def test_statements_on_sqlite_search_a_long_conversation_by_index(
    filled_file: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, steps in explained(filled_file, name, _query_plan, monkeypatch):
        touching = [step for step in steps if any(f" {table}" in step for table in _NAMES_OF_MESSAGES)]
        assert not [step for step in touching if not step.startswith("SEARCH")], (text, steps)
        assert not [step for step in touching if "INDEX" not in step], (text, steps)
        if "TEMP B-TREE" in "".join(steps):
            assert "said" not in text, (text, steps)  # the prompt's history comes in the order of its index
            assert "ORDER BY messages.conversation_id, messages.turn" in text, (text, steps)  # given ids, few


_NAMES_OF_MESSAGES: Final = ("messages", "said", "earlier", "version", "question", "reply", "later")
"""The table's name and its aliases in statements."""


def _steps(url: str, name: str, thread: Thread) -> int:
    """Return how many instructions SQLite's machine executes for that work: a cost without a clock."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    def query(conn: Connection) -> None:
        raw = conn.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(step, 1)
        try:
            WORK[name](conn, thread)
        finally:
            raw.set_progress_handler(None, 1)
        raise _Undone

    with pytest.raises(_Undone):
        run_once(url, query)
    return count


@pytest.mark.parametrize("name", WORK)
def test_work_on_sqlite_with_10000_messages_takes_as_many_steps_as_with_100(filled_file: str, name: str) -> None:
    short, long = _steps(filled_file, name, SHORT), _steps(filled_file, name, LONG)
    assert short > 0
    assert long == pytest.approx(short, rel=0.05)


# --- PostgreSQL ---


@pytest.fixture(scope="module")
def filled_postgres_url(session_postgres: PostgresServer) -> Iterator[str]:
    """A database of PostgreSQL with the same, and statistics."""
    name = session_postgres.create_database("template")
    run_once(session_postgres.url(name), _fill)
    yield session_postgres.url(name)
    session_postgres.drop_database(name)


def _analyzed(conn: Connection, text: str, values: Sequence[Any]) -> list[Any]:
    """Execute a statement and undo that; return the nodes of its plan with what they have read."""
    undone = conn.begin_nested()
    nodes = plan_nodes(conn, text, values, "ANALYZE", "TIMING OFF")
    undone.rollback()
    return nodes


def _rows_read(node: Mapping[str, Any]) -> float:
    read = sum(float(node.get(name, 0)) for name in ("Actual Rows", *_REMOVED))
    return read * float(node.get("Actual Loops", 1))


_REMOVED: Final = ("Rows Removed by Filter", "Rows Removed by Index Recheck", "Rows Removed by Join Filter")


@pytest.mark.parametrize("name", WORK)
def test_statements_on_postgresql_read_few_rows_of_a_long_conversation(
    filled_postgres_url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, nodes in explained(filled_postgres_url, name, _analyzed, monkeypatch):
        of_messages = [node for node in nodes if node.get("Relation Name") == "messages"]
        assert not [node for node in of_messages if node["Node Type"] == "Seq Scan"], (text, nodes)
        assert sum(map(_rows_read, of_messages)) <= MOST_ROWS, (text, nodes)
        assert sum(float(node.get("Rows Removed by Filter", 0)) for node in of_messages) <= HISTORY_LIMIT, (text, nodes)
        sorts = [node for node in nodes if "Sort" in node["Node Type"]]
        assert sum(map(_rows_read, sorts)) <= MOST_ROWS, (text, nodes)
