"""A socket that speaks frames, and nothing of what a good client does on its own."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

WAIT_SECONDS: Final = 10.0


class Client:
    """A socket that sends and receives frames as dicts."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.connection: dict[str, Any] = {}

    async def send(self, **frame: Any) -> None:
        await self.send_text(json.dumps(frame))

    async def send_text(self, text: str | bytes) -> None:
        await self.socket.send(text)

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_SECONDS):
            frame = json.loads(await self.socket.recv())
        assert isinstance(frame, dict)
        return frame

    async def until(self, kind: str) -> dict[str, Any]:
        """Return the next frame of that type, passing over others."""
        while (frame := await self.receive())["type"] != kind:
            pass
        return frame

    async def ping(self) -> None:
        """Return when the server has answered all that was sent before."""
        key = secrets.token_hex(8)
        await self.send(type="ping", id=key)
        while (await self.until("pong"))["id"] != key:
            pass

    async def closed(self) -> int:
        """Read to the end; return the close code."""
        async with asyncio.timeout(WAIT_SECONDS):
            with suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
        assert self.socket.close_code is not None
        return self.socket.close_code


@asynccontextmanager
async def connected(
    url: str, token: str | None = None, path: str = "/ws", *, greeted: bool = True, **query: str
) -> AsyncIterator[Client]:
    """Open a socket of the server at `url` (`ws://…`); with `greeted`, the `connection` frame is read already."""
    offered = None if token is None else [Subprotocol("bearer"), Subprotocol(token)]
    text = "&".join(f"{name}={value}" for name, value in query.items())
    async with connect(f"{url}{path}?{text}", subprotocols=offered, open_timeout=WAIT_SECONDS) as socket:
        client = Client(socket)
        if greeted:
            client.connection = await client.receive()
            assert client.connection["type"] == "connection", client.connection
        yield client
