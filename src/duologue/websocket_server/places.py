"""Whose connection it is and which conversation its messages go to: looked up in the store, remembered a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from duologue.auth.tokens import Identity
from duologue.domain.clock import Clock
from duologue.domain.errors import Rejected
from duologue.protocol.codes import ErrorCode
from duologue.protocol.session import Place
from duologue.store.characters import DEFAULT_CHARACTER_ID, CharacterRow, find_character
from duologue.store.conversations import ConversationRow, default_conversation, new_conversation, owned_conversation
from duologue.store.database import Database
from duologue.store.users import UserRow, deleted_users, ensure_user, user_by_id

NEW: Final = "new"
"""`conversation_id` of a connection that wants a conversation of its own."""

REMEMBERED: Final = 32
"""Conversations remembered for each connection."""

_NUL: Final = "\0"
"""It may stand in an address, and names nothing: PostgreSQL refuses it in any text (rule Poison)."""


class Author:
    """The user of a connection, and the conversations that its frames have named so far."""

    __slots__ = ("conversations", "identity", "place")

    def __init__(self, identity: Identity, place: Place) -> None:
        self.identity = identity
        self.place = place
        self.conversations: OrderedDict[tuple[str | None, str | None], str] | None = None

    def recall(self, conversation_id: str | None, character: str | None) -> str | None:
        """Return the conversation that such a frame means, if it is known."""
        if conversation_id is None and character is None:
            return self.place.conversation_id
        if conversation_id == self.place.conversation_id:
            return conversation_id
        return self.conversations.get((conversation_id, character)) if self.conversations else None

    def remember(self, conversation_id: str | None, character: str | None, found: str) -> None:
        """Remember the conversation that such a frame means; the oldest is forgotten."""
        if self.conversations is None:  # most connections never name one
            self.conversations = OrderedDict()
        self.conversations[conversation_id, character] = found
        if len(self.conversations) > REMEMBERED:
            self.conversations.popitem(last=False)


class Places:
    """Looks places up."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def of_connection(self, identity: Identity, character: str | None, conversation_id: str | None) -> Place:
        """Return where a connection's messages go; user and conversation are made if they are new.

        Raises:
            Rejected: `invalid_token` (the user was deleted), `conversation_not_found` or `character_not_found`.
            StoreUnavailable: the database cannot be reached.
        """
        return await self._database.write(_place, identity, character, conversation_id, self._clock())

    async def of_frame(self, author: Author, conversation_id: str | None, character: str | None) -> str:
        """Return the conversation that a frame goes to, which names it or a character, or neither.

        Raises:
            Rejected: `conversation_not_found` or `character_not_found`.
            StoreUnavailable: the database cannot be reached.
        """
        known = author.recall(conversation_id, character)
        if known is not None:
            return known
        uid = author.place.uid
        if conversation_id is not None:
            found = (await self._database.read(_owned, uid, conversation_id)).id
        else:
            found = await self._database.write(_with_character, author.identity, uid, character or "", self._clock())
        author.remember(conversation_id, character, found)
        return found

    async def deleted(self, uids: Sequence[str]) -> set[str]:
        """Return which of these users were deleted. Raises StoreUnavailable."""
        return await self._database.read(deleted_users, uids)


def _place(conn: Connection, identity: Identity, character: str | None, conversation_id: str | None, now: int) -> Place:
    user = _user(conn, identity, now)
    conversation = _conversation(conn, user, character, conversation_id, now)
    return Place(
        uid=user.uid,
        username=user.name or identity.username,
        character_id=conversation.character_id or DEFAULT_CHARACTER_ID,
        conversation_id=conversation.id,
    )


def _user(conn: Connection, identity: Identity, now: int) -> UserRow:
    """Return the token's user; a token without `uid`, of a product's own backend, makes a user never seen."""
    tenant, user_id = identity.user
    if identity.uid is None:
        user = ensure_user(conn, tenant, user_id, "external", now)
    else:
        user = user_by_id(conn, identity.uid)
    if user is None or user.deleted_at is not None or user.key != identity.user:
        raise Rejected(ErrorCode.INVALID_TOKEN, "the token's user is not there any more")
    return user


def _conversation(
    conn: Connection, user: UserRow, character: str | None, conversation_id: str | None, now: int
) -> ConversationRow:
    if conversation_id is not None and conversation_id != NEW:
        return _owned(conn, user.uid, conversation_id)
    who = None if character is None else _character(conn, user.tenant, character, user.uid)
    make = new_conversation if conversation_id == NEW else default_conversation
    return make(conn, user, who, now)


def _owned(conn: Connection, uid: str, conversation_id: str) -> ConversationRow:
    conversation = None if _NUL in conversation_id else owned_conversation(conn, uid, conversation_id)
    if conversation is None:
        raise Rejected(ErrorCode.CONVERSATION_NOT_FOUND, "there is no such conversation")
    return conversation


def _character(conn: Connection, tenant: str, character: str, uid: str) -> CharacterRow:
    found = None if _NUL in character else find_character(conn, tenant, character, uid)
    if found is None:
        raise Rejected(ErrorCode.CHARACTER_NOT_FOUND, "there is no such character")
    return found


def _with_character(conn: Connection, identity: Identity, uid: str, character: str, now: int) -> str:
    user = user_by_id(conn, uid)
    if user is None or user.deleted_at is not None:
        raise Rejected(ErrorCode.INVALID_TOKEN, "the token's user is not there any more")
    return default_conversation(conn, user, _character(conn, identity.user.tenant, character, uid), now).id
