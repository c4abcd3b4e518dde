"""What the mock sends, as bytes: HTTP responses and the events of a stream."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

STAMP_PATTERN: Final = re.compile(r"@(\d+\.\d{6})")
"""Finds in a reply when each stamped piece left: seconds since the Unix epoch."""

WORD: Final = "word "

_OPEN_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_DONE: Final = b"data: [DONE]\n\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_EVENT: Final = b'data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":0,"model":%b,"choices":%b}\n\n'
_CHOICE: Final = b'[{"index":0,"delta":%b,"finish_reason":%b}]'
_WHOLE: Final = (
    b'{"id":"chatcmpl-mock","object":"chat.completion","created":0,"model":%b,"choices":[{"index":0,"message":'
    b'{"role":"assistant","content":%b},"finish_reason":"stop"}],"usage":%b}'
)
_USAGE: Final = b'{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}'


class Stream:
    """A streamed answer's bytes for one model's name, with or without its usage at the end. Get it with `stream`."""

    def __init__(self, model: bytes, has_usage: bool) -> None:
        self._model = model
        self._has_usage = has_usage
        self._opening = _OPEN_STREAM + self._piece(WORD, role=b'"role":"assistant",')
        self._later = self._piece(WORD)
        self._end = lru_cache(maxsize=1024)(self._encode_end)

    def plain(self, count: int, first: bool, tokens: int) -> bytes:
        """Return so many pieces of no particular text.

        Args:
            count: how many pieces, at least one.
            first: they are the first of the reply.
            tokens: of the whole reply, if these are its last; else 0.
        """
        pieces = self._opening + self._later * (count - 1) if first else self._later * count
        return pieces + self._end(tokens) if tokens else pieces

    def of(self, texts: list[str], first: bool, tokens: int) -> bytes:
        """Return pieces of these texts; otherwise as `plain`."""
        head = [_OPEN_STREAM, self._piece(texts[0], role=b'"role":"assistant",')] if first else []
        later = [self._piece(text) for text in (texts[1:] if first else texts)]
        return b"".join([*head, *later, self._end(tokens) if tokens else b""])

    def _piece(self, text: str, role: bytes = b"") -> bytes:
        delta = b'{%b"content":%b}' % (role, msgspec.json.encode(text))
        return _chunk(self._event(_CHOICE % (delta, b"null")))

    def _encode_end(self, tokens: int) -> bytes:
        reason = self._event(_CHOICE % (b"{}", b'"stop"'))
        usage = b""
        if self._has_usage:
            usage = self._event(b'[],"usage":' + _usage(tokens))
        return _chunk(reason + usage + _DONE) + _LAST_CHUNK

    def _event(self, choices: bytes) -> bytes:
        return _EVENT % (self._model, choices)


@lru_cache(maxsize=64)
def stream(model: bytes, has_usage: bool) -> Stream:
    """Return the bytes of streamed answers; `model` is a JSON string, quotes included."""
    return Stream(model, has_usage)


def whole_answer(model: bytes, text: str, tokens: int) -> bytes:
    """Return the HTTP response that carries an answer at once, with its usage; `model` is a JSON string."""
    return response(b"200 OK", _WHOLE % (model, msgspec.json.encode(text), _usage(tokens)))


def response(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    """Return an HTTP response of a JSON body."""
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (status, len(body), headers) + body


def failure(status: bytes, message: str, *, kind: str, code: str | None = None, headers: bytes = b"") -> bytes:
    """Return an HTTP response in the form of OpenAI's errors."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return response(status, msgspec.json.encode({"error": error}), headers)


def refusal(fault: str, retry_after_seconds: int | None) -> bytes:
    """Return the response for the fault `429` or `500`."""
    after = b"" if retry_after_seconds is None else b"Retry-After: %d\r\n" % retry_after_seconds
    if fault == "429":
        status, code = b"429 Too Many Requests", "rate_limit_exceeded"
        return failure(status, "slow down", kind="requests", code=code, headers=after)
    return failure(b"500 Internal Server Error", "it broke", kind="server_error", headers=after)


def models() -> bytes:
    """Return the response to `GET /v1/models`."""
    return response(
        b"200 OK", b'{"object":"list","data":[{"id":"mock","object":"model","created":0,"owned_by":"duologue"}]}'
    )


def _usage(tokens: int) -> bytes:
    return _USAGE % (tokens, tokens + 1)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
