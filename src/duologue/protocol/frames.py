"""The frames of the protocol, as PROTOCOL version 1 names their fields. What is absent on the wire is None here.

Frames to the client are msgspec structs, encoded once for all devices of a user. A durable frame is encoded without its
`event_id`: the script that draws the number puts it in.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from duologue.domain.records import Usage

PROTOCOL_VERSION: Final = 1


class _ToClient(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """A frame from the server. Fields that are None are left out."""


class Limits(msgspec.Struct, frozen=True):
    """What this server accepts, told to each client. Bytes, characters, counts and seconds as the names say."""

    frame_bytes: int
    content_characters: int
    connections_per_user: int
    send_queue_bytes: int
    metadata_bytes: int
    messages: int
    messages_window_seconds: int


class Connection(_ToClient, frozen=True, kw_only=True, tag="connection"):
    message: str
    session_id: str
    userid: str
    username: str
    character_id: str
    conversation_id: str
    server_id: str
    protocol: int
    features: list[str]
    server_time: str
    limits: Limits
    recovered: bool
    event_id: str


class Ack(_ToClient, frozen=True, kw_only=True, tag="ack"):
    id: str
    message_id: str
    conversation_id: str
    timestamp: str
    duplicate: bool


class Echo(_ToClient, frozen=True, kw_only=True, tag="echo"):
    role: Literal["user"]
    id: str
    message_id: str
    conversation_id: str
    content: str
    timestamp: str
    metadata: dict[str, Any] | None = None


class Queued(_ToClient, frozen=True, kw_only=True, tag="queued"):
    message_id: str
    position: int
    eta_ms: int


class Typing(_ToClient, frozen=True, kw_only=True, tag="typing"):
    role: Literal["ai", "user"]
    conversation_id: str
    active: bool


class Delta(_ToClient, frozen=True, kw_only=True, tag="delta"):
    message_id: str
    conversation_id: str
    attempt: int
    seq: int
    content: str
    from_seq: int | None = None


class Snapshot(_ToClient, frozen=True, kw_only=True, tag="snapshot"):
    message_id: str
    conversation_id: str
    attempt: int
    seq: int
    content: str


class Reset(_ToClient, frozen=True, kw_only=True, tag="reset"):
    message_id: str
    conversation_id: str
    attempt: int
    reason: Literal["retry", "takeover", "regenerate"]


class Response(_ToClient, frozen=True, kw_only=True, tag="response"):
    role: Literal["ai"]
    message_id: str
    reply_id: str
    conversation_id: str
    content: str
    userid: str
    timestamp: str
    processing_time_ms: int
    model: str
    finish_reason: str
    attempt: int
    generation: int
    correlation_id: str
    usage: Usage | None = None
    metadata: dict[str, Any] | None = None


class Error(_ToClient, frozen=True, kw_only=True, tag="error"):
    """`retry_after` is in seconds."""

    code: str
    message: str
    userid: str
    temporary: bool
    retry_after: float | None = None
    id: str | None = None
    message_id: str | None = None
    attempt: int | None = None
    correlation_id: str | None = None
    metadata: dict[str, Any] | None = None


class Pong(_ToClient, frozen=True, kw_only=True, tag="pong"):
    server_time: str
    id: str | None = None


ServerFrame: TypeAlias = Connection | Ack | Echo | Queued | Typing | Delta | Snapshot | Reset | Response | Error | Pong

_encoder = msgspec.json.Encoder()


def encode(frame: ServerFrame) -> bytes:
    """Return a frame as the JSON text that goes on the wire, in UTF-8."""
    return _encoder.encode(frame)


class _FromClient(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A frame from the client. Fields that are not known are ignored."""


class Message(_FromClient, frozen=True, kw_only=True, tag="message"):
    content: str
    id: str | None = None
    conversation_id: str | None = None
    character_id: str | None = None
    model: str | None = None
    metadata: dict[str, Any] | None = None
    userid: str | None = None


class Stop(_FromClient, frozen=True, kw_only=True, tag="stop"):
    message_id: str
    id: str | None = None
    conversation_id: str | None = None


class Regenerate(_FromClient, frozen=True, kw_only=True, tag="regenerate"):
    message_id: str
    attempt: Annotated[int, msgspec.Meta(ge=1)] | None = None
    id: str | None = None
    conversation_id: str | None = None


class ClientTyping(_FromClient, frozen=True, kw_only=True, tag="typing"):
    conversation_id: str
    active: bool


class Resume(_FromClient, frozen=True, kw_only=True, tag="resume"):
    last_event_id: str


class Auth(_FromClient, frozen=True, kw_only=True, tag="auth"):
    token: str


class Ping(_FromClient, frozen=True, kw_only=True, tag="ping"):
    id: str | None = None


Submittable: TypeAlias = Message | Stop | Regenerate
"""What goes on the log."""

ClientFrame: TypeAlias = Submittable | ClientTyping | Resume | Auth | Ping
