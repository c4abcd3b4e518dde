"""Conversations and their history, as far as they are read."""

# Annotations are not postponed here: FastAPI reads those that name what is local to a factory.
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy import Connection

from duologue.api.access import SignedIn
from duologue.api.models import (
    ChangedMessages,
    Conversation,
    ConversationList,
    MessageList,
    changed_messages_of,
    conversation_list_of,
    conversation_of,
    message_list_of,
)
from duologue.api.params import (
    DEFAULT_LIMIT,
    ID_PATTERN,
    After,
    Before,
    BeforeMessage,
    ConversationId,
    Cursor,
    Limit,
)
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.errors import Rejected
from duologue.protocol.codes import ErrorCode
from duologue.store.conversations import (
    ConversationRow,
    ConversationStatus,
    list_conversations,
    owned_conversation,
)
from duologue.store.database import Database
from duologue.store.history import MessagePage, changed_messages, conversation_messages
from duologue.store.users import UserRow


def router(database: Database, signed_in: SignedIn, clock: Clock = wall_clock) -> APIRouter:
    """Serve `/conversations` and `/messages` for whoever has a token; another's are not found."""
    api = APIRouter(tags=["Conversations"])
    _serve_conversations(api, database, signed_in)
    _serve_messages(api, database, signed_in)
    _serve_changes(api, database, signed_in, clock)
    return api


def _serve_conversations(api: APIRouter, database: Database, signed_in: SignedIn) -> None:
    @api.get("/conversations", summary="The caller's conversations, newest activity first")
    async def list_all(
        user: Annotated[UserRow, Depends(signed_in)],
        status: Annotated[ConversationStatus | None, Query(description="Only those of this status.")] = None,
        character_id: Annotated[
            str | None, Query(pattern=ID_PATTERN, description="Only those with this character.")
        ] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> ConversationList:
        """Empty conversations are not listed."""
        page = await database.read(
            list_conversations, user.uid, status=status, character_id=character_id, cursor=cursor, limit=limit
        )
        return conversation_list_of(page)

    @api.get("/conversations/{conversation_id}", summary="One conversation")
    async def single(conversation_id: ConversationId, user: Annotated[UserRow, Depends(signed_in)]) -> Conversation:
        return conversation_of(await database.read(_owned, user.uid, conversation_id))


def _serve_messages(api: APIRouter, database: Database, signed_in: SignedIn) -> None:
    @api.get("/conversations/{conversation_id}/messages", summary="What was said in a conversation")
    async def messages(
        conversation_id: ConversationId,
        user: Annotated[UserRow, Depends(signed_in)],
        before: BeforeMessage = None,
        cursor: BeforeMessage = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> MessageList:
        """Oldest first within a page, pages backwards: the first one holds the newest messages. `next_cursor` is the
        `before` of the next page, null at the conversation's beginning; `cursor` is another name for `before`."""
        page = await database.read(_messages, user.uid, conversation_id, before or cursor, limit)
        return message_list_of(page)


def _serve_changes(api: APIRouter, database: Database, signed_in: SignedIn, clock: Clock) -> None:
    @api.get("/messages", summary="What is new or changed across the caller's conversations")
    async def changes(
        user: Annotated[UserRow, Depends(signed_in)],
        after: After = None,
        before: Before = None,
        cursor: After = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> ChangedMessages:
        """In the order of the changes, oldest first; without `after` the newest page. What a client reads after
        `recovered: false`: rows that changed up to 30 s before the cursor come again, so merge by `id`, and the higher
        `attempt` wins. `next_cursor` is always given; a page with fewer than `limit` items is the last for now.
        `cursor` is another name for `after`."""
        page = await database.read(
            changed_messages, user.uid, after=after or cursor, before=before, limit=limit, now=clock()
        )
        return changed_messages_of(page)


def _owned(conn: Connection, uid: str, conversation_id: str) -> ConversationRow:
    row = owned_conversation(conn, uid, conversation_id)
    if row is None:
        raise Rejected(ErrorCode.CONVERSATION_NOT_FOUND, "There is no such conversation.")
    return row


def _messages(conn: Connection, uid: str, conversation_id: str, before: str | None, limit: int) -> MessagePage:
    return conversation_messages(conn, uid, _owned(conn, uid, conversation_id).id, before, limit)
