"""The way in: a message is checked, counted and put on the log; only then is it acknowledged."""

from __future__ import annotations

import uuid

import msgspec
import structlog

from duologue.delivery.stream import RateLimit, UserStreams
from duologue.domain.clock import Clock
from duologue.domain.errors import DuologueError, Rejected
from duologue.domain.ids import message_id
from duologue.domain.records import CORRELATION_HEADER, INCOMING_TOPIC, MessageSubmitted, encode
from duologue.log.port import LogProducer
from duologue.observability.metrics import MESSAGES_ACKNOWLEDGED
from duologue.protocol.codes import ErrorCode
from duologue.protocol.frames import Message
from duologue.websocket_server.places import Author, Places

_log = structlog.get_logger(__name__)


class Admitted(msgspec.Struct, frozen=True):
    """A message that may go on the log. `duplicate`: the log is known to have it already."""

    record: MessageSubmitted
    duplicate: bool


class Ingress:
    """Takes the messages of one server's connections."""

    def __init__(
        self, *, producer: LogProducer, streams: UserStreams, places: Places, limit: RateLimit, clock: Clock
    ) -> None:
        self._producer = producer
        self._streams = streams
        self._places = places
        self._limit = limit
        self._clock = clock

    async def admit(self, author: Author, frame: Message, client_id: str, correlation_id: str) -> Admitted:
        """Find the message's conversation and count it against its user's limit. Nothing is accepted yet.

        Raises:
            Rejected: `conversation_not_found`, `character_not_found` or `rate_limited`.
            Retryable: the store or Redis cannot be reached.
        """
        user = author.identity.user
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
            submitted_at=self._clock(),
            correlation_id=correlation_id,
            model=frame.model,
            metadata=frame.metadata,
        )
        admission = await self._streams.admit(user, record.message_id, limit=self._limit)
        if admission.retry_after_seconds is not None:
            raise Rejected(
                ErrorCode.RATE_LIMITED,
                f"more than {self._limit.requests} messages in {self._limit.window_seconds} s",
                retry_after_seconds=max(round(admission.retry_after_seconds, 3), 0.001),
            )
        return Admitted(record, admission.duplicate)

    async def append(self, admitted: Admitted) -> None:
        """Put a message on the log; a repeat too (rule Refusals). It takes its place before the first suspension.

        Raises:
            LogUnavailable: no acknowledgement came in time.
        """
        record = admitted.record
        headers = {CORRELATION_HEADER: record.correlation_id}
        await self._producer.append(INCOMING_TOPIC, record.conversation_id, encode(record), headers)

    async def accepted(self, admitted: Admitted) -> None:
        """Tell operators of a message that was acknowledged, and remember it for the `duplicate` of a repeat.

        Without Redis there is no such hint.
        """
        record = admitted.record
        MESSAGES_ACKNOWLEDGED.inc()
        _log.info(
            "message_accepted",
            correlation_id=record.correlation_id,
            message_id=record.message_id,
            conversation_id=record.conversation_id,
            user=record.user_id,
        )
        try:
            await self._streams.note(record.user, record.message_id, record.conversation_id)
        except DuologueError as error:
            _log.debug("note_lost", correlation_id=record.correlation_id, error=str(error))


def new_correlation_id() -> str:
    """Return an id under which one message is found in every log line and record."""
    return uuid.uuid4().hex
