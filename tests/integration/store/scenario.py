"""A user who talks: what the tests of the store are told in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.domain.ids import message_id, new_id
from duologue.domain.records import MessageSubmitted
from duologue.store.conversations import ConversationRow, default_conversation, new_conversation
from duologue.store.database import Database
from duologue.store.messages import Incoming, Stored, StoredRequest, store_messages
from duologue.store.outcomes import Completion, Outcome, complete
from duologue.store.replies import Claim, claim
from duologue.store.schema import messages
from duologue.store.users import UserRow, ensure_user

NOW = 1_800_000_000_000


@dataclass
class Scenario:
    """One user, their default conversation, and the log's next offset."""

    database: Database
    user: UserRow
    conversation: ConversationRow
    offsets: count[int] = field(default_factory=lambda: count(1))

    @classmethod
    async def open(cls, database: Database, name: str = "ada") -> Scenario:
        user, conversation = await database.write(_begin, name)
        return cls(database, user, conversation)

    async def another_conversation(self) -> ConversationRow:
        return await self.database.write(new_conversation, self.user, None, NOW)

    def says(self, content: str, conversation: ConversationRow | None = None) -> Incoming:
        """A record on the log; the same content is a copy of the same message, whatever the conversation."""
        conversation = conversation or self.conversation
        record = MessageSubmitted(
            tenant=self.user.tenant,
            user_id=self.user.user_id,
            uid=self.user.uid,
            message_id=self.id_of(content),
            conversation_id=conversation.id,
            client_id=content[:64],
            content=content,
            submitted_at=NOW - 5,
            correlation_id=f"correlation of {content[:20]}",
            metadata={"said": content[:20]},
        )
        return Incoming(record, "incoming_messages", 0, next(self.offsets))

    def id_of(self, content: str) -> str:
        return message_id(
            tenant=self.user.tenant, uid=self.user.uid, client_id=content[:64], content=content, conversation_id=None
        )

    async def store(self, *batch: Incoming, now: int = NOW) -> list[Stored]:
        return await self.database.write(store_messages, batch, now)

    async def asked(self, *contents: str, now: int = NOW) -> list[StoredRequest]:
        """Store these messages and return the requests for their answers."""
        entries = await self.store(*map(self.says, contents), now=now)
        return [entry for entry in entries if isinstance(entry, StoredRequest)]

    async def claim(self, *requests: StoredRequest, owner: str = "one", now: int = NOW) -> list[Claim]:
        return await self.database.write(claim, [request.reply_id for request in requests], owner, now)

    async def finish(self, *completions: Completion, published: Sequence[str] = (), now: int = NOW) -> set[str]:
        return await self.database.write(complete, completions, published, now)

    async def answered(self, question: str, answer: str, state: Outcome = "complete", now: int = NOW) -> StoredRequest:
        """Store a message, claim its reply and end it."""
        (request,) = await self.asked(question, now=now)
        (held,) = await self.claim(request, now=now)
        await self.finish(ended(held, answer, state), now=now)
        return request


def ended(held: Claim, content: str = "", state: Outcome = "complete", *, attempt: int | None = None) -> Completion:
    return Completion(
        reply_id=held.reply_id,
        attempt=held.attempt if attempt is None else attempt,
        state=state,
        completed_at=NOW + 10,
        content=content,
    )


def _begin(conn: Connection, name: str) -> tuple[UserRow, ConversationRow]:
    user = ensure_user(conn, "default", name, "guest", NOW)
    assert user is not None
    return user, default_conversation(conn, user, None, NOW)


def add_version(conn: Connection, request: StoredRequest, generation: int, state: str, content: str = "") -> str:
    """Insert a further request for an answer to the same message, as a regeneration is. Return its id."""
    row = dict(conn.execute(sa.select(messages).where(messages.c.id == request.reply_id)).mappings().one())
    row |= {"id": new_id(), "generation": generation, "turn": request.turn + generation - 1}
    row |= {"state": state, "content": content, "attempt": 0, "takeovers": 0, "handovers": 0}
    conn.execute(sa.insert(messages), row)
    return str(row["id"])
