"""A small server behind nginx, which plays a websocket-server and an api."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import WSMsgType, web
from multidict import CIMultiDictProxy

TALE = (b"once upon a time\n", b"and then\n", b"the end\n")


class Upstream:
    """It tells its name, echoes frames, and does what the tests ask of it by its paths and attributes."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.draining = False
        self.sockets: list[web.WebSocketResponse] = []
        self.handshakes: list[CIMultiDictProxy[str]] = []
        self.requests: list[str] = []
        self.go_on = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/ws", self._socket)
        app.router.add_get("/ws/{rest:.*}", self._socket)
        app.router.add_get("/tale", self._tale)
        app.router.add_route("*", "/break", self._break)
        app.router.add_route("*", "/{rest:.*}", self._tell)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """End as a process does: connections are closed, new ones refused."""
        self.go_on.set()
        for socket in [*self.sockets]:
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        self.handshakes.append(request.headers)
        if self.draining:
            return web.Response(status=503)
        socket = web.WebSocketResponse(protocols=("bearer",), max_msg_size=0)
        await socket.prepare(request)
        self.sockets.append(socket)
        try:
            await socket.send_str(self.name)
            async for message in socket:
                if message.type is WSMsgType.TEXT and "mute" not in request.path:
                    await socket.send_str(message.data)
        finally:
            self.sockets.remove(socket)
        return socket

    async def _tell(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.raw_path}")
        body = await request.read()
        headers = [[name, value] for name, value in request.headers.items()]
        return web.json_response(
            {"server": self.name, "path": request.raw_path, "body_bytes": len(body), "headers": headers},
            headers={"X-Correlation-ID": request.headers.get("X-Correlation-ID", "made")},
        )

    async def _tale(self, request: web.Request) -> web.StreamResponse:
        """Send an answer line by line, each when the test lets it."""
        response = web.StreamResponse()
        await response.prepare(request)
        for line in TALE:
            await self.go_on.wait()
            self.go_on.clear()
            await response.write(line)
        return response

    async def _break(self, request: web.Request) -> web.Response:
        """Take a request and break off before the answer."""
        self.requests.append(f"{request.method} {request.raw_path}")
        await request.read()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


@asynccontextmanager
async def running_upstream(name: str, port: int) -> AsyncIterator[Upstream]:
    """Run an upstream."""
    upstream = Upstream(name, port)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()
