"""A proxy that a test puts in front of an engine, to make it slow, or silent while connections stay open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_READ_BYTES = 65_536
_FIRST_BYTES = 4096


class Link:
    """A connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.first = b""
        """The first that the client said: by it the test knows which connection it is."""
        self.deaf = False
        """Whether what the server says is swallowed."""

    def subscribes(self) -> bool:
        """Tell whether it is a Redis client's that hears publications."""
        return b"SUBSCRIBE" in self.first

    def abort(self) -> None:
        """End it on both sides."""
        for writer in (self.client, self.server):
            writer.transport.abort()


class TcpProxy:
    """Passes on what comes, `delay_seconds` later in both directions.

    While it is `away` it ends connections as soon as they are made; `go_away` also ends those that there are.
    Connections of which `deaf_to` holds swallow what the server says from then on.

    Args:
        target: a host and a port, or the path of a Unix socket.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self.links: list[Link] = []
        self.delay_seconds = 0.0
        self.away = False
        self.deaf_to: Callable[[Link], bool] = lambda _: False
        self.port = 0
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    def go_away(self) -> None:
        """End all connections, and from now on every new one."""
        self.away = True
        for link in list(self.links):
            link.abort()

    def subscriptions(self) -> list[Link]:
        """Return the connections that hear a Redis' publications."""
        return [link for link in self.links if link.subscribes()]

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[TcpProxy]:
        """Listen on a port of loopback, a free one by default, until the context ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for link in list(self.links):
                link.abort()
            await asyncio.gather(*self._tasks)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self.away:
            to_client.transport.abort()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            from_server, to_server = await self._connected()
        except OSError:
            to_client.transport.abort()
            return
        link = Link(to_client, to_server)
        self.links.append(link)
        try:
            await asyncio.gather(
                self._pass_on(from_client, to_server, link, of_client=True),
                self._pass_on(from_server, to_client, link, of_client=False),
            )
        finally:
            self.links.remove(link)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link, *, of_client: bool
    ) -> None:
        """Pass on one direction until its end, which ends the other too. What is on its way is not in one piece."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)  # b"": the end
        writing = asyncio.create_task(self._write(waiting, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                if of_client and len(link.first) < _FIRST_BYTES:
                    link.first += data
                if of_client or not (link.deaf or self._turns_deaf(link)):
                    await waiting.put((loop.time() + self.delay_seconds, data))
        await waiting.put((loop.time() + self.delay_seconds, b""))
        await writing
        link.abort()

    def _turns_deaf(self, link: Link) -> bool:
        link.deaf = self.deaf_to(link)
        return link.deaf

    async def _write(self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        data = b"first"
        while data:
            at, data = await waiting.get()
            await asyncio.sleep(at - loop.time())
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()
