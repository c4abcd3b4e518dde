"""One text frame into a frame of the protocol, or into the reason why not.

The common frame takes one msgspec decode of a tagged union. Only a frame that fails is looked at again, slowly, to find
out which code of the protocol names its fault.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Never

import msgspec

from duologue.domain.errors import Rejected
from duologue.protocol.codes import ErrorCode
from duologue.protocol.frames import Auth, ClientFrame, ClientTyping, Message, Ping, Regenerate, Resume, Stop

MAX_DEPTH: Final = 32
MAX_ID_CHARACTERS: Final = 64
MAX_REFERENCE_CHARACTERS: Final = 256
"""For ids and names of other things. What is longer names nothing."""

_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_message_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_encoder = msgspec.json.Encoder()

_TYPES: Final = frozenset({"message", "stop", "regenerate", "typing", "resume", "auth", "ping"})
_TYPE_MISSING: Final = "Object missing required field `type`"
_MARKS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)
_ESCAPED_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class FrameRefused(Rejected):
    """A frame is at fault. `client_id` is its own `id`, as far as it could be read."""

    def __init__(self, code: ErrorCode, message: str, client_id: str | None = None) -> None:
        super().__init__(code, message)
        self.client_id = client_id


class Bounds(msgspec.Struct, frozen=True):
    """What a message may measure."""

    content_characters: int = 8000
    metadata_bytes: int = 1024


def parse_frame(text: str, bounds: Bounds) -> ClientFrame:
    """Read a text frame.

    Args:
        text: the frame as it came; its size in bytes was bounded before.
        bounds: what a message may measure.

    Raises:
        FrameRefused: `invalid_json`, `invalid_frame`, `unknown_type`, `content_empty` or `content_too_long`.
    """
    _check_depth(text)
    try:
        frame = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        frame = _untyped_message(text, error)
    if "\\u0000" in text and _ESCAPED_NUL.search(text):
        raise FrameRefused(ErrorCode.INVALID_FRAME, "the frame holds a NUL", _sane_id(getattr(frame, "id", None)))
    if isinstance(frame, Message):
        _check_message(frame, bounds)
    else:
        _check_other(frame)
    return frame


def _check_depth(text: str) -> None:
    """Refuse deep nesting before a parser recurses into it.

    A frame is no deeper than it has brackets, so the depth is counted only for one that has many.
    """
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise FrameRefused(ErrorCode.INVALID_FRAME, f"the frame is nested deeper than {MAX_DEPTH}")


def _depth(text: str) -> int:
    """Return how deep brackets outside of strings nest."""
    depth = deepest = 0
    for mark in _MARKS.findall(text):
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _untyped_message(text: str, error: Exception) -> Message:
    """Return the frame as a message if all that it lacks is its type, as older clients send it."""
    if str(error) != _TYPE_MISSING:
        raise _refusal(text, error) from error
    try:
        return _message_decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError) as cause:
        raise _refusal(text, cause) from cause


def _refusal(text: str, error: Exception) -> FrameRefused:
    """Find out what is wrong with a frame that does not decode. Python's own parser takes what msgspec refuses."""
    if "\0" in text:
        return FrameRefused(ErrorCode.INVALID_FRAME, "the frame holds a NUL")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return FrameRefused(ErrorCode.INVALID_JSON, "the frame is not JSON")
    if not isinstance(value, dict):
        return FrameRefused(ErrorCode.INVALID_FRAME, "the frame is not an object")
    client_id = _sane_id(value.get("id"))
    kind = value.get("type")
    if isinstance(kind, str) and kind not in _TYPES:
        return FrameRefused(ErrorCode.UNKNOWN_TYPE, "the frame's type is not known", client_id)
    return FrameRefused(ErrorCode.INVALID_FRAME, _fault(value, error), client_id)


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _fault(value: dict[str, Any], error: Exception) -> str:
    if "type" not in value and "content" not in value:
        return "the frame has neither type nor content"
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    return "the frame holds a lone surrogate"  # what else one parser takes and the other does not


def _sane_id(value: object) -> str | None:
    """Return a frame's `id` if it can be told back to the client."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARACTERS:
        return None
    return value if not any("\ud800" <= character <= "\udfff" for character in value) else None


def _check_message(frame: Message, bounds: Bounds) -> None:
    _check_id(frame.id)
    if len(frame.content) > bounds.content_characters:
        raise FrameRefused(
            ErrorCode.CONTENT_TOO_LONG, f"the content is longer than {bounds.content_characters} characters", frame.id
        )
    if not frame.content or frame.content.isspace():
        raise FrameRefused(ErrorCode.CONTENT_EMPTY, "the content is empty", frame.id)
    _check_references(frame.id, frame.conversation_id, frame.character_id, frame.model)
    if frame.metadata is not None and len(_encoder.encode(frame.metadata)) > bounds.metadata_bytes:
        raise FrameRefused(
            ErrorCode.INVALID_FRAME, f"the metadata is larger than {bounds.metadata_bytes} bytes", frame.id
        )


def _check_other(frame: Stop | Regenerate | ClientTyping | Resume | Auth | Ping) -> None:
    if isinstance(frame, Ping):
        _check_id(frame.id)
    elif isinstance(frame, Stop | Regenerate):
        _check_id(frame.id)
        _check_references(frame.id, frame.message_id, frame.conversation_id)
    elif isinstance(frame, ClientTyping):
        _check_references(None, frame.conversation_id)


def _check_id(client_id: str | None) -> None:
    if client_id is not None and not 0 < len(client_id) <= MAX_ID_CHARACTERS:
        raise FrameRefused(ErrorCode.INVALID_FRAME, f"an id has 1 to {MAX_ID_CHARACTERS} characters")


def _check_references(client_id: str | None, *references: str | None) -> None:
    for reference in references:
        if reference is not None and len(reference) > MAX_REFERENCE_CHARACTERS:
            raise FrameRefused(ErrorCode.INVALID_FRAME, "a reference is too long", client_id)
