"""TLS in front of a server that has none. The certificates are for `localhost`, of an authority that only tests
know, and hold until 2120; nobody has the authority's key any more."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "certificates"
CA_FILE: Final = FOLDER / "ca.pem"
CERTIFICATE_FILE: Final = FOLDER / "server.pem"
KEY_FILE: Final = FOLDER / "server.key"


class _Front:
    """Ends TLS and passes bytes on to a Unix socket and back."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self.connections: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._socket_path)
            writers.append(inner_writer)
            ways = [_copied(reader, inner_writer), _copied(inner_reader, writer)]
            _, open_ways = await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
            for way in open_ways:
                way.cancel()
            await asyncio.gather(*open_ways, return_exceptions=True)
        except OSError:
            return
        finally:
            for each in writers:
                each.transport.abort()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def tls_front(socket_path: str, *, asks_for_certificate: bool = False) -> AsyncIterator[int]:
    """Serve TLS for the server behind a Unix socket; yields the port of `localhost`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE_FILE, KEY_FILE)
    if asks_for_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CA_FILE)
    front = _Front(socket_path)
    server = await asyncio.start_server(front.accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(front.connections):
            connection.cancel()
        await asyncio.gather(*front.connections, return_exceptions=True)
        await server.wait_closed()
