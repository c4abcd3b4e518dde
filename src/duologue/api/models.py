"""What the API shows of conversations and messages: times in RFC 3339, ids as text."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from duologue.domain.clock import rfc3339
from duologue.store.conversations import ConversationPage, ConversationRow
from duologue.store.history import ChangedPage, MessagePage, MessageRow

_CONVERSATION_EXAMPLE: Final[dict[str, Any]] = {
    "id": "0197a3c2-5a10-7c31-9d1e-0d6f5f1f9a01",
    "character_id": None,
    "title": "How do tides work?",
    "status": "active",
    "settings": {},
    "is_default": True,
    "created_at": "2026-01-05T12:00:00.000Z",
    "updated_at": "2026-01-05T12:00:04.120Z",
    "last_activity_at": "2026-01-05T12:00:04.120Z",
}
_REPLY_EXAMPLE: Final[dict[str, Any]] = {
    "id": "0197a3c2-6b7e-7d02-8a55-3f0c51e4b702",
    "conversation_id": "0197a3c2-5a10-7c31-9d1e-0d6f5f1f9a01",
    "role": "assistant",
    "content": "The moon pulls on the oceans …",
    "state": "complete",
    "reply_to": "5f0f3c55-9c3b-5d3e-8f43-0a8f8f6f2c11",
    "position": 1,
    "generation": 1,
    "attempt": 1,
    "client_id": None,
    "metadata": None,
    "model": "gpt-4o-mini",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 182, "completion_tokens": 64, "total_tokens": 246},
    "error": None,
    "processing_time_ms": 1240,
    "created_at": "2026-01-05T12:00:02.880Z",
    "updated_at": "2026-01-05T12:00:04.120Z",
    "completed_at": "2026-01-05T12:00:04.118Z",
}


class Conversation(BaseModel):
    """A thread of messages."""

    model_config = ConfigDict(json_schema_extra={"example": _CONVERSATION_EXAMPLE})

    id: str
    character_id: str | None = Field(description="Who answers; null: the assistant.")
    title: str | None = Field(description="Made from the first message; null until something was said.")
    status: Literal["active", "archived"]
    settings: dict[str, Any]
    is_default: bool = Field(description="Messages that name no conversation go here, for its character.")
    created_at: str
    updated_at: str
    last_activity_at: str


class ConversationList(BaseModel):
    """A page of conversations."""

    items: list[Conversation]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last.")


class TokenUsage(BaseModel):
    """Tokens of one reply, as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Failure(BaseModel):
    """Why a reply failed."""

    code: str
    message: str
    temporary: bool = Field(description="Whether another try may succeed.")


class Message(BaseModel):
    """A user's message, or one version of the reply to it."""

    model_config = ConfigDict(json_schema_extra={"example": _REPLY_EXAMPLE})

    id: str = Field(description="A user message's `message_id`, a reply's `reply_id`.")
    conversation_id: str
    role: Literal["user", "assistant"]
    content: str = Field(description="Empty for a reply that has not ended.")
    state: Literal["complete", "queued", "generating", "failed", "stopped"]
    reply_to: str | None = Field(description="The user message that this answers.")
    position: int = Field(description="Place in the conversation, from 1; a reply has that of its message.")
    generation: int = Field(description="0 for a user message; replies to one message count from 1.")
    attempt: int
    client_id: str | None = Field(description="The `id` that the client gave its frame.")
    metadata: dict[str, Any] | None
    model: str | None
    finish_reason: str | None
    usage: TokenUsage | None
    error: Failure | None
    processing_time_ms: int | None
    created_at: str
    updated_at: str
    completed_at: str | None


class MessageList(BaseModel):
    """A page of a conversation, oldest first."""

    items: list[Message]
    next_cursor: str | None = Field(description="The `before` of the page before this one; null at the beginning.")


class ChangedMessages(BaseModel):
    """A page of changes, oldest first."""

    items: list[Message]
    next_cursor: str = Field(description="What to read `after`.")
    previous_cursor: str | None = Field(description="What to read `before`; null if there is nothing earlier.")


def conversation_of(row: ConversationRow) -> Conversation:
    """Return what is shown of a conversation."""
    return Conversation(
        id=row.id,
        character_id=row.character_id,
        title=row.title,
        status=row.status,
        settings=row.settings,
        is_default=row.is_default,
        created_at=rfc3339(row.created_at),
        updated_at=rfc3339(row.updated_at),
        last_activity_at=rfc3339(row.last_activity_at),
    )


def conversation_list_of(page: ConversationPage) -> ConversationList:
    """Return what is shown of a page of conversations."""
    return ConversationList(items=[conversation_of(row) for row in page.items], next_cursor=page.next_cursor)


def message_list_of(page: MessagePage) -> MessageList:
    """Return what is shown of a page of a conversation."""
    return MessageList(items=[message_of(row) for row in page.items], next_cursor=page.next_cursor)


def changed_messages_of(page: ChangedPage) -> ChangedMessages:
    """Return what is shown of a page of changes."""
    return ChangedMessages(
        items=[message_of(row) for row in page.items],
        next_cursor=page.next_cursor,
        previous_cursor=page.previous_cursor,
    )


def message_of(row: MessageRow) -> Message:
    """Return what is shown of a message."""
    return Message(
        id=row.id,
        conversation_id=row.conversation_id,
        role=row.role,
        content=row.content,
        state=row.state,
        reply_to=row.reply_to,
        position=row.position,
        generation=row.generation,
        attempt=row.attempt,
        client_id=row.client_id,
        metadata=row.metadata,
        model=row.model,
        finish_reason=row.finish_reason,
        usage=TokenUsage.model_validate(row.usage, from_attributes=True) if row.usage else None,
        error=Failure.model_validate(row.error, from_attributes=True) if row.error else None,
        processing_time_ms=row.processing_time_ms,
        created_at=rfc3339(row.created_at),
        updated_at=rfc3339(row.updated_at),
        completed_at=None if row.completed_at is None else rfc3339(row.completed_at),
    )
