"""The first schema: users, characters, conversations, messages, dead letters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out rather than taken from `schema`: a migration says what was, whatever the schema becomes.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
UNDELETED = sa.text("deleted_at IS NULL")
DELETED = sa.text("deleted_at IS NOT NULL")
DEFAULT = sa.text("is_default AND deleted_at IS NULL")
UNFINISHED = sa.text("state IN ('queued', 'generating')")


def upgrade() -> None:
    """Create everything."""
    _create_users()
    _create_characters()
    _create_conversations()
    _create_messages()
    _create_dead_letters()
    op.create_table(
        "tombstones",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("deleted_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name="pk_tombstones"),
    )


def downgrade() -> None:
    """Drop everything."""
    for table in ("tombstones", "dead_letters", "messages", "conversations", "characters", "refresh_tokens", "users"):
        op.drop_table(table)


def _create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("userid", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("deleted_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
    )
    op.create_index(
        "uq_users_tenant_userid",
        "users",
        ["tenant", "userid"],
        unique=True,
        sqlite_where=UNDELETED,
        postgresql_where=UNDELETED,
    )
    op.create_index("ix_users_deleted", "users", ["tenant", "userid"], sqlite_where=DELETED, postgresql_where=DELETED)
    op.create_table(
        "refresh_tokens",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("token_hash", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_refresh_tokens"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_refresh_tokens_user_id_users"),
        sa.UniqueConstraint("token_hash", name="uq_refresh_tokens_token_hash"),
    )
    op.create_index("ix_refresh_tokens_user_id", "refresh_tokens", ["user_id"])
    op.create_index("ix_refresh_tokens_family", "refresh_tokens", ["family"])


def _create_characters() -> None:
    op.create_table(
        "characters",
        sa.Column("id", sa.Text, nullable=False),
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
        sa.Column("created_by", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_characters"),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name="fk_characters_created_by_users"),
        sa.UniqueConstraint("tenant", "slug", name="uq_characters_tenant_slug"),
    )
    op.create_index("ix_characters_created_by", "characters", ["created_by"])


def _create_conversations() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("character_id", sa.Text),
        sa.Column("title", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("is_default", sa.Boolean, nullable=False),
        sa.Column("next_position", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.Column("next_turn", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("last_activity_at", sa.BigInteger, nullable=False),
        sa.Column("deleted_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_conversations_user_id_users"),
        sa.ForeignKeyConstraint(["character_id"], ["characters.id"], name="fk_conversations_character_id_characters"),
    )
    op.create_index("ix_conversations_character_id", "conversations", ["character_id"])
    op.create_index(
        "ix_conversations_user_id_last_activity_at_id", "conversations", ["user_id", "last_activity_at", "id"]
    )
    op.create_index(
        "uq_conversations_default",
        "conversations",
        ["user_id", sa.text("coalesce(character_id, '')")],
        unique=True,
        sqlite_where=DEFAULT,
        postgresql_where=DEFAULT,
    )


def _create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("conversation_id", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("reply_to", sa.Text),
        sa.Column("turn", sa.Integer),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("takeovers", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("handovers", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("owner", sa.Text),
        sa.Column("claimed_at", sa.BigInteger),
        sa.Column("leaving_until", sa.BigInteger),
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
        sa.Column("submitted_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("completed_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_messages_user_id_users"),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_messages_conversation_id_conversations"
        ),
        sa.ForeignKeyConstraint(["reply_to"], ["messages.id"], name="fk_messages_reply_to_messages"),
        sa.UniqueConstraint("reply_to", "generation", name="uq_messages_reply_to_generation"),
    )
    op.create_index(
        "ix_messages_conversation_id_position_generation", "messages", ["conversation_id", "position", "generation"]
    )
    op.create_index("ix_messages_user_id_updated_at_id", "messages", ["user_id", "updated_at", "id"])
    op.create_index(
        "ix_messages_unfinished",
        "messages",
        ["conversation_id", "turn"],
        sqlite_where=UNFINISHED,
        postgresql_where=UNFINISHED,
    )


def _create_dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("headers", JSON, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("message_id", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
        sa.UniqueConstraint("topic", "partition", "offset", name="uq_dead_letters_topic_partition_offset"),
    )
    op.create_index("ix_dead_letters_user_id", "dead_letters", ["user_id"])
