"""The way in: a frame is checked, counted and put on the log; only then is it acknowledged."""

from __future__ import annotations

import uuid
from typing import Final

import structlog

from duologue.delivery.stream import UserStreams
from duologue.domain.clock import Clock
from duologue.domain.errors import DuologueError
from duologue.domain.ids import message_id, new_id
from duologue.domain.records import (
    CORRELATION_HEADER,
    INCOMING_TOPIC,
    IncomingRecord,
    MessageSubmitted,
    RegenerateRequested,
    StopRequested,
    encode,
)
from duologue.log.port import LogProducer
from duologue.observability.metrics import MESSAGES_ACKNOWLEDGED
from duologue.protocol.frames import Message, Stop, Submittable
from duologue.websocket_server.admission import Admitted
from duologue.websocket_server.commands import Commands
from duologue.websocket_server.load import Admittance
from duologue.websocket_server.places import Author, Places

_log = structlog.get_logger(__name__)

_ACCEPTED: Final[dict[type[IncomingRecord], str]] = {
    MessageSubmitted: "message_accepted",
    StopRequested: "stop_accepted",
    RegenerateRequested: "regenerate_accepted",
}


class Ingress:
    """Takes the messages, stops and regenerations of one server's connections."""

    def __init__(
        self,
        *,
        producer: LogProducer,
        streams: UserStreams,
        places: Places,
        commands: Commands,
        admission: Admittance,
        clock: Clock,
    ) -> None:
        self._producer = producer
        self._streams = streams
        self._places = places
        self._commands = commands
        self._admission = admission
        self._clock = clock

    async def admit(self, author: Author, frame: Submittable, correlation_id: str) -> Admitted:
        """Find out what a frame is about and count it against its user's limit. Nothing is accepted yet.

        Raises:
            Rejected: with a code of the protocol.
            Retryable: the store or Redis cannot be reached.
        """
        if isinstance(frame, Message):
            return await self._admit_message(author, frame, correlation_id)
        if isinstance(frame, Stop):
            return await self._commands.admit_stop(author, frame, correlation_id)
        return await self._commands.admit_regenerate(author, frame, correlation_id)

    async def _admit_message(self, author: Author, frame: Message, correlation_id: str) -> Admitted:
        """Find the message's conversation.

        Raises:
            Rejected: `conversation_not_found`, `character_not_found`, `rate_limited` or `overloaded`.
            Retryable: the store or Redis cannot be reached.
        """
        user, now = author.identity.user, self._clock()
        client_id = frame.id or new_id()
        conversation = await self._places.of_frame(author, frame.conversation_id, frame.character_id)
        record = MessageSubmitted(
            tenant=user.tenant,
            user_id=user.user_id,
            uid=author.place.uid,
            message_id=message_id(
                tenant=user.tenant,
                uid=author.place.uid,
                client_id=client_id,
                content=frame.content,
                conversation_id=frame.conversation_id,
            ),
            conversation_id=conversation,
            client_id=client_id,
            content=frame.content,
            submitted_at=now,
            correlation_id=correlation_id,
            model=frame.model,
            metadata=frame.metadata,
        )
        duplicate = await self._admission.admit(user, record.message_id, conversation)
        return Admitted(record=record, client_id=client_id, timestamp=now, duplicate=duplicate)

    async def append(self, admitted: Admitted) -> None:
        """Put a frame on the log; a repeat too (rule Refusals), but for that of a stop. It takes its place before the
        first suspension.

        Raises:
            LogUnavailable: no acknowledgement came in time.
        """
        if admitted.on_log:
            return
        record = admitted.record
        headers = {CORRELATION_HEADER: record.correlation_id}
        try:
            await self._producer.append(INCOMING_TOPIC, record.conversation_id, encode(record), headers)
        except DuologueError:
            # Else an earlier append has put it there, and its outcome is to come.
            if isinstance(record, MessageSubmitted) and not admitted.duplicate:
                await self._admission.withdraw(record.user, record.message_id)
            raise

    async def accepted(self, admitted: Admitted) -> None:
        """Tell operators of a frame that was acknowledged, and remember it for its repeats.

        Without Redis they are taken as new; of a message that costs the `duplicate` only.
        """
        record = admitted.record
        if isinstance(record, MessageSubmitted):
            MESSAGES_ACKNOWLEDGED.inc()
        _log.info(
            _ACCEPTED[type(record)],
            correlation_id=record.correlation_id,
            message_id=record.message_id,
            conversation_id=record.conversation_id,
            user=record.user_id,
        )
        try:
            await self._note(admitted)
        except DuologueError as error:
            _log.debug("note_lost", correlation_id=record.correlation_id, error=str(error))

    async def _note(self, admitted: Admitted) -> None:
        record, command = admitted.record, admitted.command
        if isinstance(record, MessageSubmitted):
            await self._streams.note(record.user, record.message_id, record.conversation_id)
        elif command is not None:
            await self._streams.note_command(record.user, command.key, command.note)


def new_correlation_id() -> str:
    """Return an id under which one message is found in every log line and record."""
    return uuid.uuid4().hex
