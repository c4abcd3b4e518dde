"""A provider for load and chaos: OpenAI's streaming endpoint that costs far less than what is measured against it.

It is a bare asyncio protocol that reads no more of HTTP than it needs and writes pieces encoded beforehand: 20 µs CPU
for a reply of 8 tokens sent at once; for a piece sent at its own time 12 µs at 25,000 a second, 27 at 2,500 (mostly
the system call and the waking). It runs until it is ended:

    python -m duologue.bench.mock_llm --port 9000 --tokens 8 --ttft-ms 0 --tps 0

`GET /stats` tells its counts, its own CPU time and, with `record`, how often each content was asked; `POST /config`
changes settings while it runs (a JSON object of `MockConfig`'s fields), `POST /reset` zeroes the counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec
import uvloop

STAMP_PATTERN: Final = re.compile(r"@(\d+\.\d{6})")
"""Finds in a reply when each stamped piece left: seconds since the Unix epoch."""

_TICK_SECONDS: Final = 0.002
_MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_OPEN_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_LAST_CHUNK: Final = b"0\r\n\r\n"
_EVENT: Final = (
    b'data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":0,"model":"mock","choices":'
    b'[{"index":0,"delta":%b,"finish_reason":%b}]%b}\n\n'
)


class MockConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the mock answers. Rates are probabilities of 0 to 1, drawn a request; `tps` 0 sends a whole reply at once."""

    tokens: int = 8
    tokens_spread: int = 0
    """A reply has `tokens` plus or minus up to this many."""
    ttft_ms: float = 0.0
    tps: float = 0.0
    """Tokens per second of one reply."""
    stamp: bool = False
    """Each piece carries the time at which it left, as `@1700000000.123456`."""
    echo: bool = False
    """The first piece repeats what the user said last."""
    record: bool = False
    """Count what users say, for `GET /stats`."""
    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_cut: float = 0.0
    """The connection closes in the middle of the reply."""
    rate_silence: float = 0.0
    """The reply stops in its middle and the connection stays open."""
    retry_after_seconds: float | None = None


class MockStats(msgspec.Struct):
    """Counts since the start or the last reset. `abandoned`: replies whose client closed before their end."""

    requests: int = 0
    in_flight: int = 0
    completed: int = 0
    abandoned: int = 0
    refused: int = 0
    cut: int = 0
    silent: int = 0
    pieces: int = 0
    cpu_seconds: float = 0.0
    contents: dict[str, int] = {}


class MockServer:
    """A running mock. `config` may be replaced at any time; it holds for the requests after that."""

    def __init__(self, config: MockConfig, seed: int | None = None) -> None:
        self.config = config
        self.stats = MockStats()
        self.ticker = _Ticker()
        self.random = random.Random(seed)  # noqa: S311  # it chooses faults, not secrets
        self._server: asyncio.Server | None = None
        self._cpu_from = time.process_time()
        self._connections: set[_Connection] = set()

    async def listen(self, host: str, port: int) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), host, port, backlog=4096
        )

    @property
    def port(self) -> int:
        assert self._server is not None  # noqa: S101
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def aclose(self) -> None:
        """Stop listening and close every connection."""
        assert self._server is not None  # noqa: S101
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def add(self, connection: _Connection) -> None:
        self._connections.add(connection)

    def discard(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def draw_fault(self) -> str:
        """Return the fault of a request: `429`, `500`, `cut`, `silence`, or nothing."""
        config = self.config
        rates = (config.rate_429, config.rate_500, config.rate_cut, config.rate_silence)
        if not any(rates):
            return ""
        draw = self.random.random()
        for fault, rate in zip(("429", "500", "cut", "silence"), rates, strict=True):
            if draw < rate:
                return fault
            draw -= rate
        return ""

    def draw_tokens(self) -> int:
        spread = self.config.tokens_spread
        return max(1, self.config.tokens + (self.random.randint(-spread, spread) if spread else 0))

    def control(self, method: bytes, path: bytes, body: bytes) -> bytes:
        """Answer what is not a completion; returns an HTTP response."""
        if method == b"GET" and path == b"/stats":
            self.stats.cpu_seconds = time.process_time() - self._cpu_from
            return _response(b"200 OK", msgspec.json.encode(self.stats))
        if method == b"POST" and path == b"/reset":
            self.stats = MockStats(in_flight=self.stats.in_flight)
            self._cpu_from = time.process_time()
            return _response(b"200 OK", b"{}")
        if method == b"POST" and path == b"/config":
            return self._configure(body)
        if method == b"GET" and path == b"/health":
            return _response(b"200 OK", b'{"status":"ok"}')
        return _response(b"404 Not Found", b'{"error":{"message":"no such path"}}')

    def _configure(self, body: bytes) -> bytes:
        try:
            changes = msgspec.json.decode(body, type=dict[str, Any])
            self.config = msgspec.convert({**msgspec.to_builtins(self.config), **changes}, MockConfig)
        except msgspec.MsgspecError as error:
            return _response(b"400 Bad Request", msgspec.json.encode({"error": {"message": str(error)}}))
        return _response(b"200 OK", msgspec.json.encode(self.config))


class _Connection(asyncio.Protocol):
    """One keep-alive connection; requests are answered one after the other."""

    def __init__(self, server: MockServer) -> None:
        self._server = server
        self._buffer = b""
        self._reply: _Reply | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream connection has a stream transport
        self._server.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.discard(self)
        self._transport = None
        if self._reply is not None:
            self._reply.abandon()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._reply is None:
            self._next_request()
        elif len(self._buffer) > _MAX_REQUEST_BYTES:
            self.abort()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reply_ended(self) -> None:
        self._reply = None
        if self._buffer:
            self._next_request()

    def _next_request(self) -> None:
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            if len(self._buffer) > _MAX_REQUEST_BYTES:
                self.abort()
            return
        match = _CONTENT_LENGTH.search(self._buffer, 0, head_end)
        end = head_end + 4 + (int(match[1]) if match else 0)
        if end > _MAX_REQUEST_BYTES:
            self.abort()
            return
        if len(self._buffer) < end:
            return
        request, self._buffer = self._buffer[:end], self._buffer[end:]
        self._handle(request, head_end + 4)

    def _handle(self, request: bytes, body_start: int) -> None:
        method, path = request[: request.index(b"\r\n")].split(b" ")[:2]
        if method == b"POST" and path.endswith(b"/chat/completions"):
            self._complete(request[body_start:])
            return
        self.write(self._server.control(method, path, request[body_start:]))
        self.reply_ended()

    def _complete(self, body: bytes) -> None:
        server = self._server
        stats, config = server.stats, server.config
        stats.requests += 1
        said = ""
        if config.record or config.echo:
            said = _last_said(body)
        if config.record:
            stats.contents[said] = stats.contents.get(said, 0) + 1
        fault = server.draw_fault()
        if fault in {"429", "500"}:
            stats.refused += 1
            self.write(_refusal(fault, config.retry_after_seconds))
            self.reply_ended()
            return
        self._reply = _Reply(self, server, fault, said if config.echo else "")
        self._reply.begin()


class _Ticker:
    """Calls back at times rounded up to a tick: one timer for all that is due together, where each having its own
    would cost as much as its piece."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots: dict[int, list[Callable[[], None]]] = {}

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        slot = math.ceil(when / _TICK_SECONDS)
        callbacks = self._slots.get(slot)
        if callbacks is None:
            callbacks = self._slots[slot] = []
            self._loop.call_at(slot * _TICK_SECONDS, self._fire, slot)
        callbacks.append(callback)

    def _fire(self, slot: int) -> None:
        for callback in self._slots.pop(slot):
            callback()


class _Reply:
    """One reply under way: pieces leave at times counted from its begin, so that lateness does not add up."""

    def __init__(self, connection: _Connection, server: MockServer, fault: str, said: str) -> None:
        self._connection = connection
        self._server = server
        self._config = server.config
        self._fault = fault
        self._said = said
        self._tokens = server.draw_tokens()
        self._sent = 0
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.time() + self._config.ttft_ms / 1000
        self._abandoned = False
        server.stats.in_flight += 1

    def begin(self) -> None:
        if self._config.ttft_ms:
            self._server.ticker.call_at(self._first, self._step)
        else:
            self._step()

    def abandon(self) -> None:
        """The client is gone."""
        self._abandoned = True
        self._server.stats.in_flight -= 1
        self._server.stats.abandoned += 1

    def _step(self) -> None:
        """Send every piece that is due."""
        if self._abandoned:
            return
        tps, last = self._config.tps, self._last()
        due = last
        if tps:
            due = min(last, int((self._loop.time() - self._first) * tps + 1e-6) + 1)
        whole = due == last and not self._fault
        start, self._sent = self._sent, due
        self._server.stats.pieces += due - start
        self._connection.write(self._encoded(start, due, whole))
        if whole:
            self._end("completed")
        elif due == last:
            self._break()
        else:
            self._server.ticker.call_at(self._first + due / tps, self._step)

    def _last(self) -> int:
        return max(1, self._tokens // 2) if self._fault else self._tokens

    def _encoded(self, start: int, end: int, whole: bool) -> bytes:
        config = self._config
        if not config.stamp and not self._said:
            return _plain(start, end, whole)
        pieces = [_OPEN_STREAM] if start == 0 else []
        pieces += [_chunk(_event(self._text(index))) for index in range(start, end)]
        if whole:
            pieces.append(_end_of(end))
        return b"".join(pieces)

    def _text(self, index: int) -> str:
        text = f"@{time.time():.6f} " if self._config.stamp else "word "
        return f"{self._said} {text}" if index == 0 and self._said else text

    def _break(self) -> None:
        if self._fault == "silence":  # it stays in flight until its client gives up
            self._server.stats.silent += 1
            return
        self._end("cut")
        self._connection.close()

    def _end(self, how: str) -> None:
        stats = self._server.stats
        stats.in_flight -= 1
        setattr(stats, how, getattr(stats, how) + 1)
        self._connection.reply_ended()


@lru_cache(maxsize=4096)
def _plain(start: int, end: int, whole: bool) -> bytes:
    head = _OPEN_STREAM if start == 0 else b""
    return head + _chunk(_event("word ")) * (end - start) + (_end_of(end) if whole else b"")


@lru_cache(maxsize=4096)
def _end_of(tokens: int) -> bytes:
    usage = b',"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}' % (tokens, tokens + 1)
    return _chunk(_EVENT % (b"{}", b'"stop"', usage) + b"data: [DONE]\n\n") + _LAST_CHUNK


def _event(text: str) -> bytes:
    return _EVENT % (b'{"content":%b}' % msgspec.json.encode(text), b"null", b"")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _response(status: bytes, body: bytes, header: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (status, len(body), header) + body


def _refusal(fault: str, retry_after_seconds: float | None) -> bytes:
    after = b"" if retry_after_seconds is None else b"Retry-After: %d\r\n" % round(retry_after_seconds)
    if fault == "429":
        return _response(b"429 Too Many Requests", b'{"error":{"message":"slow down","code":"rate_limit"}}', after)
    return _response(b"500 Internal Server Error", b'{"error":{"message":"it broke"}}', after)


class _Said(msgspec.Struct):
    role: str = ""
    content: Any = ""


class _Request(msgspec.Struct):
    messages: list[_Said] = []


def _last_said(body: bytes) -> str:
    """Return the latest content of the role `user` in a request, empty if there is none."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        for message in reversed(msgspec.json.decode(body, type=_Request).messages):
            if message.role == "user" and isinstance(message.content, str):
                return message.content
    return ""


async def serve(config: MockConfig, *, host: str = "127.0.0.1", port: int = 0, seed: int | None = None) -> MockServer:
    """Start a mock in this event loop; the caller ends it with `aclose`. Port 0 takes a free one."""
    server = MockServer(config, seed)
    await server.listen(host, port)
    return server


async def run(config: MockConfig, *, host: str, port: int, seed: int | None = None) -> None:
    """Serve until cancelled; prints the base URL on one line when it listens."""
    server = await serve(config, host=host, port=port, seed=seed)
    print(server.base_url, flush=True)  # noqa: T201
    try:
        await asyncio.Event().wait()
    finally:
        await server.aclose()


def _parse(arguments: list[str] | None) -> tuple[MockConfig, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="duologue mock-llm", description="A cheap OpenAI-compatible model for load.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=None)
    for field in msgspec.structs.fields(MockConfig):
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(
                option, type=float if field.default is None else type(field.default), default=field.default
            )
    parsed = parser.parse_args(arguments)
    names = [field.name for field in msgspec.structs.fields(MockConfig)]
    return MockConfig(**{name: getattr(parsed, name) for name in names}), parsed


def main(arguments: list[str] | None = None) -> None:
    """Run the mock from the command line until SIGTERM or Ctrl-C."""
    config, parsed = _parse(arguments)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run(config, host=parsed.host, port=parsed.port, seed=parsed.seed))


if __name__ == "__main__":
    main()
