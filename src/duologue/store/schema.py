"""The tables, for both databases. Times are BIGINT milliseconds since the Unix epoch, ids are text.

`messages` holds user messages and reply versions: a user message has generation 0, each request for an answer to it
is a row of its own with generation 1 and up, unique in (`reply_to`, `generation`).
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

METADATA: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

JSON: Final = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

UNFINISHED: Final = "state IN ('queued', 'generating')"
"""A reply without outcome. Written with literals, since SQLite uses a partial index only if its condition is one of
the query's own terms, which a bound value never is."""

_UNDELETED: Final = sa.text("deleted_at IS NULL")
_DELETED: Final = sa.text("deleted_at IS NOT NULL")
_DEFAULT: Final = sa.text("is_default AND deleted_at IS NULL")
_UNFINISHED: Final = sa.text(UNFINISHED)


def _time(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _number(name: str, start: int) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=sa.text(str(start)))


users: Final = sa.Table(
    "users",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("userid", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    _time("created_at"),
    _time("updated_at"),
    _time("deleted_at", nullable=True),
    sa.Index(
        "uq_users_tenant_userid",
        "tenant",
        "userid",
        unique=True,
        sqlite_where=_UNDELETED,
        postgresql_where=_UNDELETED,
    ),
    sa.Index("ix_users_deleted", "tenant", "userid", sqlite_where=_DELETED, postgresql_where=_DELETED),
)

refresh_tokens: Final = sa.Table(
    "refresh_tokens",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("family", sa.Text, nullable=False, index=True),
    sa.Column("token_hash", sa.Text, nullable=False, unique=True),
    _time("created_at"),
    _time("expires_at"),
    _time("used_at", nullable=True),
    _time("revoked_at", nullable=True),
)

characters: Final = sa.Table(
    "characters",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("slug", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("system_prompt", sa.Text, nullable=False),
    sa.Column("greeting", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("temperature", sa.Float),
    sa.Column("max_tokens", sa.Integer),
    sa.Column("avatar_url", sa.Text),
    sa.Column("tags", JSON, nullable=False),
    sa.Column("is_public", sa.Boolean, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
    sa.Column("created_by", sa.Text, sa.ForeignKey("users.id"), index=True),
    _time("created_at"),
    _time("updated_at"),
    sa.UniqueConstraint("tenant", "slug"),
)

conversations: Final = sa.Table(
    "conversations",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("character_id", sa.Text, sa.ForeignKey("characters.id"), index=True),
    sa.Column("title", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("settings", JSON, nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
    _number("next_position", 1),
    _number("next_turn", 1),
    _time("created_at"),
    _time("updated_at"),
    _time("last_activity_at"),
    _time("deleted_at", nullable=True),
    sa.Index("ix_conversations_user_id_last_activity_at_id", "user_id", "last_activity_at", "id"),
    sa.Index(
        "uq_conversations_default",
        "user_id",
        sa.text("coalesce(character_id, '')"),  # two NULLs are never equal in a unique index
        unique=True,
        sqlite_where=_DEFAULT,
        postgresql_where=_DEFAULT,
    ),
)

messages: Final = sa.Table(
    "messages",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("conversation_id", sa.Text, sa.ForeignKey("conversations.id"), nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    _number("generation", 0),
    sa.Column("reply_to", sa.Text, sa.ForeignKey("messages.id")),
    sa.Column("turn", sa.Integer),
    sa.Column("state", sa.Text, nullable=False),
    _number("attempt", 0),
    _number("takeovers", 0),
    _number("handovers", 0),
    sa.Column("owner", sa.Text),
    _time("claimed_at", nullable=True),
    _time("leaving_until", nullable=True),
    sa.Column("published", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("metadata", JSON),
    sa.Column("client_id", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("requested_model", sa.Text),
    sa.Column("finish_reason", sa.Text),
    sa.Column("usage", JSON),
    sa.Column("error", JSON),
    sa.Column("processing_time_ms", sa.Integer),
    sa.Column("correlation_id", sa.Text, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    _time("submitted_at"),
    _time("created_at"),
    _time("updated_at"),
    _time("completed_at", nullable=True),
    sa.UniqueConstraint("reply_to", "generation"),
    sa.Index("ix_messages_conversation_id_position_generation", "conversation_id", "position", "generation"),
    sa.Index("ix_messages_user_id_updated_at_id", "user_id", "updated_at", "id"),
    sa.Index(
        "ix_messages_unfinished",
        "conversation_id",
        "turn",
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    ),
)

dead_letters: Final = sa.Table(
    "dead_letters",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text),
    sa.Column("user_id", sa.Text, index=True),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("headers", JSON, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    _time("first_at"),
    _time("last_at"),
    sa.Column("message_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("conversation_id", sa.Text, index=True),
    sa.Column("attempt", sa.Integer),
    sa.Column("size", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    _time("handled_at", nullable=True),
    sa.Column("handled_by", sa.Text),
    sa.UniqueConstraint("topic", "partition", "offset"),
    sa.Index("ix_dead_letters_last_at_id", "last_at", "id"),
)

tombstones: Final = sa.Table(
    "tombstones",
    METADATA,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    _time("deleted_at"),
)
