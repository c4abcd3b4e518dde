"""What a stop or a regenerate is about: a user's message, and the latest version of the reply to it."""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.store.messages import ReplyState
from duologue.store.schema import conversations, messages


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A user's message.

    `state`, `attempt` (0: nobody has begun) and `generation` are those of the latest version of its reply;
    `replaced` is the highest attempt of the versions before, 0 if there is none.
    """

    conversation_id: str
    state: ReplyState
    attempt: int
    generation: int
    replaced: int
    is_last: bool

    @property
    def finished(self) -> bool:
        """Whether the latest version has its outcome."""
        return self.state not in ("queued", "generating")

    def has_replaced(self, attempt: int) -> bool:
        """Tell whether another attempt or version has come after this one."""
        return attempt <= self.replaced or attempt < self.attempt


_reply = messages.alias("reply")
_version = messages.alias("version")
_later = messages.alias("later")

_TARGET: Final = (
    sa.select(
        messages.c.conversation_id,
        _reply.c.state,
        _reply.c.attempt,
        _reply.c.generation,
        sa.select(sa.func.coalesce(sa.func.max(_version.c.attempt), 0))
        .where(_version.c.reply_to == messages.c.id, _version.c.generation < _reply.c.generation)
        .scalar_subquery()
        .label("replaced"),
        ~sa.exists(sa.literal_column("1"))
        .where(_later.c.conversation_id == messages.c.conversation_id, _later.c.position > messages.c.position)
        .label("is_last"),
    )
    .join(_reply, _reply.c.reply_to == messages.c.id)
    .join(conversations, conversations.c.id == messages.c.conversation_id)
    .where(
        messages.c.id == sa.bindparam("id"),
        messages.c.user_id == sa.bindparam("uid"),
        messages.c.role == sa.literal_column("'user'"),
        conversations.c.deleted_at.is_(None),
    )
    .order_by(_reply.c.generation.desc())
    .limit(1)
)


def find_target(conn: Connection, uid: str, message_id: str) -> Target | None:
    """Return what there is to stop or to regenerate; None if the user has no such message."""
    row = conn.execute(_TARGET, {"id": message_id, "uid": uid}).mappings().first()
    return None if row is None else Target(**row)
