"""What the log carries: records, their encoding, and the names of topics and headers.

A record is a tagged msgspec struct encoded as JSON, so that other tools can read the log. `v` is the version of its
form: a reader refuses what is newer than it knows, since it cannot tell what it would drop.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from duologue.domain.errors import RecordUnreadable
from duologue.domain.ids import UserKey

VERSION: Final = 1
MAX_RECORD_BYTES: Final = 1_000_000

INCOMING_TOPIC: Final = "incoming_messages"
RESPONSES_TOPIC: Final = "responses"
DEAD_LETTER_SUFFIX: Final = ".dlq"

CORRELATION_HEADER: Final = "correlation_id"
TRACE_HEADER: Final = "traceparent"


class _UserRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What every record says of its user. `uid` is the user's row in the store."""

    tenant: str
    user_id: str
    uid: str
    v: int = VERSION

    @property
    def user(self) -> UserKey:
        return UserKey(self.tenant, self.user_id)


class MessageSubmitted(_UserRecord, frozen=True, kw_only=True, tag="message_submitted", tag_field="type"):
    """A user said something. Topic `incoming_messages`, key `conversation_id`.

    `client_id` is the frame's `id`; `submitted_at` is milliseconds since the Unix epoch at the edge.
    """

    message_id: str
    conversation_id: str
    client_id: str
    content: str
    submitted_at: int
    correlation_id: str
    model: str | None = None
    metadata: dict[str, Any] | None = None


class StopRequested(_UserRecord, frozen=True, kw_only=True, tag="stop_requested", tag_field="type"):
    """The reply to `message_id` is to end. Same topic and key as the message."""

    message_id: str
    conversation_id: str
    requested_at: int
    correlation_id: str


class RegenerateRequested(_UserRecord, frozen=True, kw_only=True, tag="regenerate_requested", tag_field="type"):
    """`message_id` is to be answered again; `attempt` is that of the reply which this replaces."""

    message_id: str
    conversation_id: str
    attempt: int
    requested_at: int
    correlation_id: str
    operator: bool = False


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer, as the provider counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Outcome(_UserRecord, frozen=True, kw_only=True):
    """What both outcomes of a reply tell. `completed_at` is milliseconds since the Unix epoch."""

    reply_id: str
    message_id: str
    conversation_id: str
    attempt: int
    generation: int
    completed_at: int
    correlation_id: str
    metadata: dict[str, Any] | None = None


class ReplyCompleted(_Outcome, frozen=True, kw_only=True, tag="reply_completed", tag_field="type"):
    """A reply is whole (or was stopped). Topic `responses`, key the user id."""

    content: str
    model: str
    finish_reason: str
    processing_time_ms: int
    usage: Usage | None = None


class ReplyFailed(_Outcome, frozen=True, kw_only=True, tag="reply_failed", tag_field="type"):
    """Every try at a reply failed. `reason` is in words for the user; `cause` is the failure's own code."""

    reason: str
    cause: str
    temporary: bool


IncomingRecord: TypeAlias = MessageSubmitted | StopRequested | RegenerateRequested
OutcomeRecord: TypeAlias = ReplyCompleted | ReplyFailed

_encoder = msgspec.json.Encoder()
_Record = TypeVar("_Record", bound=_UserRecord)
_incoming_decoder: msgspec.json.Decoder[IncomingRecord] = msgspec.json.Decoder(IncomingRecord)
_outcome_decoder: msgspec.json.Decoder[OutcomeRecord] = msgspec.json.Decoder(OutcomeRecord)


def encode(record: IncomingRecord | OutcomeRecord) -> bytes:
    """Return a record as the bytes that the log carries."""
    return _encoder.encode(record)


def decode_incoming(value: bytes) -> IncomingRecord:
    """Read a record of `incoming_messages`.

    Raises:
        RecordUnreadable: it is not such a record, of a newer version, or too large.
    """
    return _checked(_incoming_decoder, value)


def decode_outcome(value: bytes) -> OutcomeRecord:
    """Read a record of `responses`.

    Raises:
        RecordUnreadable: it is not such a record, of a newer version, or too large.
    """
    return _checked(_outcome_decoder, value)


_Id: TypeAlias = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")]


class Origin(msgspec.Struct, frozen=True):
    """What a record is about, as far as it can be told. `attempt` is that of an outcome, None in other records."""

    type: str = ""
    tenant: _Id | None = None
    uid: _Id | None = None
    message_id: _Id | None = None
    conversation_id: _Id | None = None
    attempt: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None


_UNKNOWN: Final = Origin()
_OUTCOME_TYPES: Final = frozenset({"reply_completed", "reply_failed"})
_origin_decoder: msgspec.json.Decoder[Origin] = msgspec.json.Decoder(Origin)


def origin_of(value: bytes) -> Origin:
    """Return what a record is about, also of one that `decode_incoming` or `decode_outcome` refuses, if that can be
    told: a newer version says it in the same fields. What is too large is not looked into."""
    if len(value) > 4 * MAX_RECORD_BYTES:
        return _UNKNOWN
    try:
        origin = _origin_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _UNKNOWN
    return origin if origin.type in _OUTCOME_TYPES else msgspec.structs.replace(origin, attempt=None)


def _checked(decoder: msgspec.json.Decoder[_Record], value: bytes) -> _Record:
    if len(value) > MAX_RECORD_BYTES:
        raise RecordUnreadable(f"the record has {len(value)} bytes, more than {MAX_RECORD_BYTES}")
    try:
        record = decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordUnreadable(f"the record cannot be read: {error}") from error
    if record.v > VERSION:
        raise RecordUnreadable(f"the record is of version {record.v}; this program knows {VERSION}")
    return record
