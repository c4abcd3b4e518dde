"""Stops and regenerations on their way in: what each is about is found out before it goes on the log.

A repeat changes nothing. A regenerate means the attempt that is current when it comes, which is another once it has
taken effect: of one with an `id` it is noted before the append which attempt that was, so the same frame means the same
attempt on any server, whatever became of the first. A stop ends what is before it on the log, so a late copy could end
a later regeneration: one with an `id` is noted once the log has it, and goes there no more.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from duologue.delivery.stream import CommandNote, RateLimit, UserStreams
from duologue.domain.clock import Clock
from duologue.domain.errors import Rejected
from duologue.domain.records import RegenerateRequested, StopRequested
from duologue.protocol.codes import ErrorCode
from duologue.protocol.frames import Regenerate, Stop
from duologue.store.conversations import owned_conversation
from duologue.store.database import Database
from duologue.store.targets import Target, find_target
from duologue.websocket_server.admission import Admitted, Command, rate_limited
from duologue.websocket_server.load import LoadGate
from duologue.websocket_server.places import Author, Places

_UNFINISHED: Final = "the reply is not finished yet"


class _Regeneration(msgspec.Struct, frozen=True):
    """What a regenerate asks for. `repeated`: its attempt has a successor already."""

    conversation_id: str
    attempt: int
    repeated: bool


class Commands:
    """Admits the stops and regenerations of one server's connections."""

    def __init__(
        self,
        *,
        streams: UserStreams,
        database: Database,
        places: Places,
        limit: RateLimit,
        load: LoadGate,
        clock: Clock,
    ) -> None:
        self._streams = streams
        self._database = database
        self._places = places
        self._limit = limit
        self._load = load
        self._clock = clock

    async def admit_stop(self, author: Author, frame: Stop, correlation_id: str) -> Admitted:
        """Find the conversation of the message whose reply is to end.

        Raises:
            Rejected: `conversation_not_found`, `message_not_found` or `rate_limited`.
            Retryable: the store or Redis cannot be reached.
        """
        named = await self._named_conversation(author, frame)
        key = _key("stop", frame)
        note = await self._count(author, key, like_message=False)
        conversation = note.conversation_id if note else named or await self._conversation_of(author, frame.message_id)
        user, now = author.identity.user, self._clock()
        return Admitted(
            record=StopRequested(
                tenant=user.tenant,
                user_id=user.user_id,
                uid=author.place.uid,
                message_id=frame.message_id,
                conversation_id=conversation,
                requested_at=now,
                correlation_id=correlation_id,
            ),
            client_id=frame.id,
            timestamp=now,
            duplicate=note is not None,
            on_log=note is not None,
            command=Command(key, CommandNote(conversation, acknowledged=True)) if key else None,
        )

    async def admit_regenerate(self, author: Author, frame: Regenerate, correlation_id: str) -> Admitted:
        """Find out which attempt is to be replaced, and whether it can be.

        Raises:
            Rejected: `conversation_not_found`, `message_not_found`, `still_generating`, `not_last`, `rate_limited`
                or `overloaded`.
            Retryable: the store or Redis cannot be reached.
        """
        named = await self._named_conversation(author, frame)
        key = _key("regenerate", frame)
        note = await self._count(author, key, like_message=True)
        repeated = note is not None and note.acknowledged
        if note is None:
            wanted = await self._wanted(author, frame, named)
            note, repeated = CommandNote(wanted.conversation_id, wanted.attempt), wanted.repeated
            if not repeated:
                self._load.take(wanted.conversation_id)
            if key:  # the same frame may be on its way through another server
                note = await self._streams.reserve_command(author.identity.user, key, note)
        user, now = author.identity.user, self._clock()
        return Admitted(
            record=RegenerateRequested(
                tenant=user.tenant,
                user_id=user.user_id,
                uid=author.place.uid,
                message_id=frame.message_id,
                conversation_id=note.conversation_id,
                attempt=note.attempt,
                requested_at=now,
                correlation_id=correlation_id,
            ),
            client_id=frame.id,
            timestamp=now,
            duplicate=repeated,
            command=Command(key, msgspec.structs.replace(note, acknowledged=True)) if key else None,
        )

    async def _named_conversation(self, author: Author, frame: Stop | Regenerate) -> str | None:
        if frame.conversation_id is None:
            return None
        return await self._places.of_frame(author, frame.conversation_id, None)

    async def _count(self, author: Author, key: str | None, *, like_message: bool) -> CommandNote | None:
        """Count a command against its user's limit; return what is noted of it."""
        admission = await self._streams.admit_command(
            author.identity.user, key, limit=self._limit, like_message=like_message
        )
        if admission.retry_after_seconds is not None:
            rate_limited(self._limit, admission.retry_after_seconds)
        return admission.note

    async def _conversation_of(self, author: Author, message_id: str) -> str:
        noted = await self._streams.conversation_of(author.identity.user, message_id)
        if noted is not None:
            return noted
        return (await self._target(author, message_id)).conversation_id

    async def _target(self, author: Author, message_id: str) -> Target:
        target = await self._database.read(find_target, author.place.uid, message_id)
        if target is None:
            raise Rejected(ErrorCode.MESSAGE_NOT_FOUND, "there is no such message")
        return target

    async def _wanted(self, author: Author, frame: Regenerate, named: str | None) -> _Regeneration:
        try:
            target = await self._target(author, frame.message_id)
        except Rejected:
            await self._refuse_unstored(author, frame)
            raise
        if named not in (None, target.conversation_id):
            raise Rejected(ErrorCode.MESSAGE_NOT_FOUND, "there is no such message in this conversation")
        attempt = frame.attempt or target.attempt
        repeated = frame.attempt is not None and target.has_replaced(frame.attempt)
        if not repeated:
            _check(target, attempt)
        return _Regeneration(target.conversation_id, attempt, repeated)

    async def _refuse_unstored(self, author: Author, frame: Regenerate) -> None:
        """A message that the store does not have may be on its way there, or deleted with its conversation."""
        conversation = await self._streams.conversation_of(author.identity.user, frame.message_id)
        if conversation is None:
            return
        if await self._database.read(owned_conversation, author.place.uid, conversation) is not None:
            raise Rejected(ErrorCode.STILL_GENERATING, _UNFINISHED)


def _check(target: Target, attempt: int) -> None:
    """Refuse a regeneration of what cannot be replaced."""
    if not target.finished:
        raise Rejected(ErrorCode.STILL_GENERATING, _UNFINISHED)
    if attempt > target.attempt:
        raise Rejected(ErrorCode.MESSAGE_NOT_FOUND, "there is no such attempt at this message")
    if not target.is_last:
        raise Rejected(ErrorCode.NOT_LAST, "only the reply to a conversation's last message can be written again")


def _key(kind: str, frame: Stop | Regenerate) -> str | None:
    """Return what tells a repeat, of `id` and message and always short; None without an `id`."""
    if frame.id is None:
        return None
    return hashlib.blake2b(f"{kind}:{frame.message_id}:{frame.id}".encode(), digest_size=16).hexdigest()
