"""Dead letters that are worked on: what a letter is about, and who replayed or dropped it when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; the letters that are there with a message are those of failed replies."""
    op.add_column("dead_letters", sa.Column("conversation_id", sa.Text))
    op.add_column("dead_letters", sa.Column("attempt", sa.Integer))
    op.add_column("dead_letters", sa.Column("size", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("dead_letters", sa.Column("handled_at", sa.BigInteger))
    op.add_column("dead_letters", sa.Column("handled_by", sa.Text))
    op.create_index("ix_dead_letters_conversation_id", "dead_letters", ["conversation_id"])
    op.create_index("ix_dead_letters_last_at_id", "dead_letters", ["last_at", "id"])
    op.execute("UPDATE dead_letters SET size = length(value)")
    op.execute(
        "UPDATE dead_letters SET"
        " conversation_id = (SELECT conversation_id FROM messages WHERE messages.id = dead_letters.message_id),"
        " attempt = (SELECT max(messages.attempt) FROM messages"
        " WHERE messages.reply_to = dead_letters.message_id AND messages.state = 'failed')"
        " WHERE message_id IS NOT NULL"
    )


def downgrade() -> None:
    """Drop the columns."""
    op.drop_index("ix_dead_letters_last_at_id", "dead_letters")
    op.drop_index("ix_dead_letters_conversation_id", "dead_letters")
    for column in ("handled_by", "handled_at", "size", "attempt", "conversation_id"):
        op.drop_column("dead_letters", column)
