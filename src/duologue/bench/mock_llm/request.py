"""What the mock is asked, read from the bytes of a request."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec

from duologue.domain.errors import Rejected

_MAX_MODEL_CHARACTERS: Final = 256

# A body as Duologue writes it: first the model, then the messages, the two fields of a stream, and from there only
# numbers and strings up to the brace that ends it. In JSON nothing inside a string or a deeper object can look like
# that from both ends, so that the messages between need no reading. Only a fault among them goes unseen.
_HEAD: Final = re.compile(rb'\{"model":("[ !#-\[\]-~]{0,256}"),"messages":\[')
_STREAMED: Final = b'],"stream":true,"stream_options":{"include_usage":true}'
_REST: Final = re.compile(rb'(?:,"[a-z_]+":(?:-?[0-9.eE+-]+|"[^"\\]*"))*\}')


class ChatRequest(msgspec.Struct, frozen=True):
    """What of a request decides the form of its answer. `model` is a JSON string, quotes included."""

    model: bytes = b'"mock"'
    streams: bool = False
    has_usage: bool = False


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Message(msgspec.Struct):
    """Any object: nothing of it is read here."""


class _Body(msgspec.Struct):
    messages: list[_Message]
    model: Annotated[str, msgspec.Meta(max_length=_MAX_MODEL_CHARACTERS)] = "mock"
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Said(msgspec.Struct):
    role: str = ""
    content: Any = ""


class _Conversation(msgspec.Struct):
    messages: list[_Said]


_body_decoder: Final = msgspec.json.Decoder(_Body)
_conversation_decoder: Final = msgspec.json.Decoder(_Conversation)


def read_chat(body: bytes) -> ChatRequest:
    """Return what a body of `POST /v1/chat/completions` asks for.

    Raises:
        Rejected: it is not JSON, has no list of messages, or another field is of a wrong type.
    """
    return _read_usual(body) or _read_any(body)


def _read_usual(body: bytes) -> ChatRequest | None:
    """Read a streaming request of the usual form without parsing it; None if it is of another form."""
    head = _HEAD.match(body)
    if head is None:
        return None
    tail = body.rfind(_STREAMED, head.end() - 1)
    if tail < 0 or _REST.fullmatch(body, tail + len(_STREAMED)) is None:
        return None
    return _usual(head[1])


@lru_cache(maxsize=64)
def _usual(model: bytes) -> ChatRequest:
    return ChatRequest(model, streams=True, has_usage=True)


def _read_any(body: bytes) -> ChatRequest:
    try:
        asked = _body_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Rejected("invalid_value", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("invalid_json", f"the body is not JSON: {error}") from error
    options = asked.stream_options
    return ChatRequest(
        msgspec.json.encode(asked.model),
        streams=bool(asked.stream),
        has_usage=options is not None and bool(options.include_usage),
    )


def last_said(body: bytes) -> str:
    """Return the latest text of the role `user` in a body that `read_chat` took, empty if there is none."""
    try:
        messages = _conversation_decoder.decode(body).messages
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    for message in reversed(messages):
        if message.role == "user" and isinstance(message.content, str):
            return message.content
    return ""
