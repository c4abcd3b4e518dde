"""HTTP/1.1 as far as the mock needs it: requests cut out of a connection's bytes, answered one after the other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, Literal

from duologue.bench.mock_llm import wire
from duologue.bench.mock_llm.replies import Peer, Reply

_MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_REQUEST_LINE: Final = re.compile(rb"([A-Z]+) ([^ ?]+)\S* HTTP/1\.[01]\r\n")
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)

Answer = Callable[[Peer, bytes, bytes, bytes], Reply | None]
"""Answers a request (method, path without its query, body): either with what it writes to the peer at once, or with
the reply that it returns, which is then begun."""


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, answer: Answer, opened: set[Connection]) -> None:
        self._answer = answer
        self._opened = opened
        self._buffer = b""
        self._reply: Reply | None = None
        self._answering = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream connection has a stream transport
        self._opened.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._opened.discard(self)
        self._transport = None
        if self._reply is not None:
            self._reply.abandon()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _MAX_REQUEST_BYTES:
            self.abort()
        else:
            self._answer_all()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close now, whatever has not left yet."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close once everything written has left; nothing more is answered."""
        self._buffer = b""
        if self._transport is not None:
            self._transport.close()

    def reply_ended(self) -> None:
        self._reply = None
        self._answer_all()

    def _answer_all(self) -> None:
        """Answer every request that is there whole, as far as none is being answered."""
        if self._answering:  # a reply that ended at once: the loop below goes on
            return
        self._answering = True
        while self._buffer and self._reply is None and self._answer_one():
            pass
        self._answering = False

    def _answer_one(self) -> bool:
        """Return whether a request was there and answered, or its answer begun."""
        buffer = self._buffer
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        line = _REQUEST_LINE.match(buffer)
        length = _CONTENT_LENGTH.search(buffer, 0, head_end + 2)
        if line is None:
            return self._refuse(b"400 Bad Request", "this is not HTTP/1.1")
        if length is None and _CHUNKED.search(buffer, 0, head_end + 2):
            return self._refuse(b"411 Length Required", "say Content-Length")
        body_start = head_end + 4
        end = body_start + (int(length[1]) if length else 0)
        if end > _MAX_REQUEST_BYTES:
            return self._refuse(b"413 Content Too Large", "a request may have 4 MiB")
        if len(buffer) < end:
            return False
        self._buffer = buffer[end:]
        self._reply = self._answer(self, line[1], line[2], buffer[body_start:end])
        if self._reply is not None:
            self._reply.begin()
        return True

    def _refuse(self, status: bytes, message: str) -> Literal[False]:
        self.write(wire.failure(status, message, kind="invalid_request_error"))
        self.close()
        return False
