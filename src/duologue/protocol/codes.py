"""Error codes and close codes of the protocol: each declared once, with what it means to a client."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ErrorCode(StrEnum):
    """`code` of an `error` frame."""

    INVALID_JSON = "invalid_json"
    INVALID_FRAME = "invalid_frame"
    UNKNOWN_TYPE = "unknown_type"
    CONTENT_EMPTY = "content_empty"
    CONTENT_TOO_LONG = "content_too_long"
    INVALID_TOKEN = "invalid_token"  # noqa: S105  # a code, not a token
    USERID_MISMATCH = "userid_mismatch"
    CONVERSATION_NOT_FOUND = "conversation_not_found"
    CHARACTER_NOT_FOUND = "character_not_found"
    MESSAGE_NOT_FOUND = "message_not_found"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    STILL_GENERATING = "still_generating"
    NOT_LAST = "not_last"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    SERVICE_UNAVAILABLE = "service_unavailable"
    GENERATION_FAILED = "generation_failed"
    INTERNAL_ERROR = "internal_error"

    @property
    def temporary(self) -> bool:
        """Whether the same frame may be accepted later. A `generation_failed` carries a flag of its own."""
        return self in _TEMPORARY


_TEMPORARY = frozenset(
    {ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED, ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.INTERNAL_ERROR}
)


class CloseCode(IntEnum):
    """Why the server closes a socket. Those from 4000 up are this protocol's, the rest are of RFC 6455."""

    GOING_AWAY = 1001
    POLICY = 1008  # the conversation or character that the connection is for is not there
    TOO_LARGE = 1009
    NO_PONG = 1011
    RESTARTING = 1012
    TRY_AGAIN = 1013
    INVALID_TOKEN = 4401
    WRONG_USER = 4403
    TOO_MANY_CONNECTIONS = 4429
