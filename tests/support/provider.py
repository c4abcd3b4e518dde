"""A provider of language models that plays what a test wants: bytes, faults and waits, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import msgspec

HANG: Final = "hang"
"""The provider goes on no further until its client has gone."""

CUT: Final = "cut"
"""The provider drops the connection."""

Step: TypeAlias = bytes | asyncio.Event | Literal["hang", "cut"]

OPEN_STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END: Final = b"0\r\n\r\n"
DONE: Final = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """Return data as a chunk of an HTTP body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(content: str | None, finish_reason: str | None = None, model: str = "real-model") -> bytes:
    """Return one event of a streamed answer."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
    return b"data: " + msgspec.json.encode({"choices": [choice], "model": model}) + b"\n\n"


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Return a whole HTTP answer."""
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answer(*contents: str, finish_reason: str = "stop", model: str = "real-model") -> list[Step]:
    """Return the script of a good answer."""
    pieces: list[Step] = [chunk(event(content, model=model)) for content in contents]
    return [OPEN_STREAM, *pieces, chunk(event(None, finish_reason, model)) + chunk(DONE) + END]


@dataclass(slots=True)
class Request:
    """A request as it came, header names in lower case; `gone` is set when its client has closed the connection."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connection: int
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Provider:
    """Plays one script a request, the last again and again, or what `choose` says."""

    def __init__(
        self, scripts: Sequence[Sequence[Step]], choose: Callable[[Request], Sequence[Step]] | None = None
    ) -> None:
        self._scripts = list(scripts)
        self._choose = choose
        self._connections = 0
        self.requests: list[Request] = []
        self.base_url = ""
        self._changed = asyncio.Condition()

    async def asked(self, times: int) -> None:
        """Return once that many requests have come in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= times)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self._connections += 1
        number = self._connections
        try:
            while (request := await _read_request(reader, number)) is not None:
                async with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                if not await self._play(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _play(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Play a script; returns whether the connection may carry another request."""
        for step in self._script(request):
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step == HANG:
                await reader.read()
                request.gone.set()
                return False
            else:
                writer.transport.abort()
                return False
        return True

    def _script(self, request: Request) -> Sequence[Step]:
        if self._choose is not None:
            return self._choose(request)
        return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]


@asynccontextmanager
async def provider(
    *scripts: Sequence[Step], choose: Callable[[Request], Sequence[Step]] | None = None
) -> AsyncIterator[Provider]:
    """Run a provider on a free port for as long as the context is open."""
    it = Provider(scripts, choose)
    tasks: set[asyncio.Task[None]] = set()

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(it.serve(reader, writer)))

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    it.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield it
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(first.split(" ")[1], headers, msgspec.json.decode(body or b"{}"), connection)
