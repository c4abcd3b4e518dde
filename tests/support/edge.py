"""A websocket-server alone: a real uvicorn in this process on real engines."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import uvicorn
from fastapi import FastAPI
from tests.support.socket_client import WAIT_SECONDS, Client, connected

from duologue.auth.tokens import TokenIssuer, TokenVerifier
from duologue.config import Settings
from duologue.delivery.hub import Hub
from duologue.delivery.load import LoadBoard
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import wall_clock
from duologue.domain.ids import DEFAULT_TENANT, UserKey
from duologue.domain.records import (
    CORRELATION_HEADER,
    INCOMING_TOPIC,
    IncomingRecord,
    MessageSubmitted,
    decode_incoming,
)
from duologue.engines.redis import Redis
from duologue.log.port import Log, LogConsumer, LogProducer, Partition
from duologue.log.valkey_streams import open_streams_log
from duologue.runner import HttpServer
from duologue.store.database import Database, open_database
from duologue.store.history import said_before
from duologue.store.migrate import migrate
from duologue.store.users import create_guest
from duologue.websocket_server.app import router
from duologue.websocket_server.load import LoadGate
from duologue.websocket_server.server import WebSocketServer
from duologue.websocket_server.transport import SocketProtocol


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; fail if it does not in time."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110  # it polls what has no event
            await asyncio.sleep(0.005)


def user(name: str) -> UserKey:
    """Return the user of that name."""
    return UserKey(DEFAULT_TENANT, name)


class _Listener:
    async def on_assigned(self, partitions: Sequence[Partition]) -> None: ...

    async def on_revoked(self, partitions: Sequence[Partition]) -> None: ...

    async def on_lost(self, partitions: Sequence[Partition]) -> None: ...


class Edge:
    """A running websocket-server and what it stands on."""

    def __init__(self, settings: Settings, secret: str) -> None:
        self.settings = settings
        self._secret = secret
        self.issuer = TokenIssuer(secret)
        self.verifier = TokenVerifier(secret)
        self.url = ""
        self.server: WebSocketServer
        self.streams: UserStreams
        self.load: LoadGate
        self.hub: Hub
        self.database: Database
        self.log: Log

    async def token(self, name: str, *, lifetime_seconds: int = 60) -> str:
        """Return the token of a new guest."""
        guest = await self.database.write(create_guest, DEFAULT_TENANT, name, wall_clock())
        assert guest is not None, "the name is taken"
        return self.issuer.issue(guest.key, uid=guest.uid, kind="guest", lifetime_seconds=lifetime_seconds)

    def external_token(self, name: str, *, tenant: str = DEFAULT_TENANT) -> str:
        """Return a token as a product's own backend signs it, without `uid`."""
        claims = {"sub": name, "tenant": tenant, "exp": wall_clock() // 1000 + 60}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    async def records(self, count: int) -> list[MessageSubmitted]:
        """Return the first `count` messages on the log, once they are there, and nothing else is."""
        found = await self.logged(count)
        messages = [record for record in found if isinstance(record, MessageSubmitted)]
        assert len(messages) == len(found)
        return messages

    async def logged(self, count: int) -> list[IncomingRecord]:
        """Return what the log has, once that is `count` records at least."""
        found: list[IncomingRecord] = []
        async with asyncio.timeout(WAIT_SECONDS), self._consumer() as consumer:
            while len(found) < count:
                for record in await consumer.poll(100, 1.0):
                    decoded = decode_incoming(record.value)
                    assert record.key == decoded.conversation_id
                    assert record.headers[CORRELATION_HEADER] == decoded.correlation_id
                    found.append(decoded)
        return found

    def _consumer(self) -> AbstractAsyncContextManager[LogConsumer]:
        group = secrets.token_hex(4)  # each reads from the beginning
        return self.log.consumer(topic=INCOMING_TOPIC, group=group, listener=_Listener())

    def connect(
        self, token: str | None = None, path: str = "/ws", *, greeted: bool = True, **query: str
    ) -> AbstractAsyncContextManager[Client]:
        """Open a socket; with `greeted`, the `connection` frame is read already."""
        return connected(self.url, token, path, greeted=greeted, **query)


@asynccontextmanager
async def running_edge(
    valkey_url: str,
    folder: Path,
    *,
    wrap: Callable[[LogProducer], LogProducer] = lambda producer: producer,
    revocation_check_seconds: float = 30.0,
    pings: tuple[float, float] = (20.0, 20.0),
    **settings: Any,
) -> AsyncIterator[Edge]:
    """Run a websocket-server on a Valkey and an SQLite file of its own.

    `pings` are the seconds between two pings, and those within which each is to be answered.
    """
    edge = Edge(Settings(**settings), secrets.token_hex(32))
    database_url = f"sqlite:///{folder / 'edge.db'}"
    migrate(database_url)
    async with AsyncExitStack() as stack:
        edge.log = await stack.enter_async_context(
            open_streams_log(valkey_url, takeover=True, timeout_seconds=edge.settings.log_timeout_seconds)
        )
        redis = await stack.enter_async_context(Redis(valkey_url, name="edge", scripts=UserStreams.scripts))
        edge.streams = UserStreams(redis, durable=True)
        edge.database = await stack.enter_async_context(open_database(database_url))
        edge.hub = await stack.enter_async_context(
            Hub(valkey_url, edge.streams, said_before=lambda user, at: edge.database.read(said_before, user, at))
        )
        edge.load = LoadGate(
            LoadBoard(redis), limit_seconds=edge.settings.overload_seconds, partition_of=lambda _: 0, draw=lambda: 0.0
        )
        edge.server = WebSocketServer(
            edge.settings,
            producer=wrap(edge.log.producer),
            hub=edge.hub,
            streams=edge.streams,
            database=edge.database,
            verifier=edge.verifier,
            load=edge.load,
            revocation_check_seconds=revocation_check_seconds,
        )
        port = await stack.enter_async_context(_serving(edge, pings))
        edge.url = f"ws://127.0.0.1:{port}"
        role = asyncio.create_task(edge.server.run())
        yield edge
        await edge.server.drain(WAIT_SECONDS)
        await role


@asynccontextmanager
async def _serving(edge: Edge, pings: tuple[float, float]) -> AsyncIterator[int]:
    app = FastAPI()
    app.include_router(router(edge.server))
    config = uvicorn.Config(
        app,
        port=0,
        ws=SocketProtocol,
        ws_max_size=edge.settings.max_frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=pings[0],
        ws_ping_timeout=pings[1],
        lifespan="off",
        log_config=None,
    )
    server = HttpServer(config)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await server.listening.wait()
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving
