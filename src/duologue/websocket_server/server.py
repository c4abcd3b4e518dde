"""The role: this server's connections, their limit, their revocation, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from duologue.auth.tokens import TokenVerifier
from duologue.config import Settings
from duologue.delivery.hub import CLOSE_INTERVAL_SECONDS, Hub
from duologue.delivery.stream import RateLimit, UserStreams
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.errors import StoreUnavailable
from duologue.domain.ids import UserKey
from duologue.domain.tasks import spread
from duologue.log.port import LogProducer
from duologue.log.role_tasks import role_tasks
from duologue.observability.metrics import CONNECTIONS
from duologue.protocol.frames import Limits
from duologue.protocol.parsing import Bounds
from duologue.protocol.session import Handshake, Terms
from duologue.store.database import Database
from duologue.websocket_server.commands import Commands
from duologue.websocket_server.connection import Connection
from duologue.websocket_server.ingress import Ingress
from duologue.websocket_server.load import Admittance, LoadGate
from duologue.websocket_server.places import Places
from duologue.websocket_server.typing_notices import TypingNotices

_log = structlog.get_logger(__name__)

REVOCATION_CHECK_SECONDS: Final = 30.0


class WebSocketServer:
    """One server's side of the protocol. It stands on its ports, which are open while it runs."""

    name: Final = "websocket-server"

    def __init__(
        self,
        settings: Settings,
        *,
        producer: LogProducer,
        hub: Hub,
        streams: UserStreams,
        database: Database,
        verifier: TokenVerifier,
        load: LoadGate,
        clock: Clock = wall_clock,
        revocation_check_seconds: float = REVOCATION_CHECK_SECONDS,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.verifier = verifier
        self.clock = clock
        self.terms = _terms(settings)
        self.bounds = Bounds(settings.max_content_characters, settings.max_metadata_bytes)
        self.places = Places(database, clock)
        self.typing = TypingNotices(streams, self.places)
        limit = RateLimit(settings.user_rate_limit_max_requests, settings.user_rate_limit_window_seconds)
        self.ingress = Ingress(
            producer=producer,
            streams=streams,
            places=self.places,
            commands=Commands(
                streams=streams, database=database, places=self.places, limit=limit, load=load, clock=clock
            ),
            admission=Admittance(streams, load, limit=limit, max_pending=settings.user_max_pending),
            clock=clock,
        )
        self._load = load
        self.draining = False
        self._by_user: dict[UserKey, list[Connection]] = {}
        self._count = 0
        self._appending = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._drained = asyncio.Event()
        self._check_seconds = revocation_check_seconds

    @property
    def connections(self) -> int:
        """Sockets that are open."""
        return self._count

    @property
    def users(self) -> int:
        """Users with a socket here."""
        return len(self._by_user)

    @property
    def in_flight(self) -> int:
        """Frames that wait for the log's acknowledgement."""
        return self._appending

    @property
    def queued_bytes(self) -> int:
        """What waits in the send queues of all sockets."""
        return sum(connection.queued_bytes for of_user in self._by_user.values() for connection in of_user)

    @property
    def takes_sockets(self) -> bool:
        """Whether a new socket is served here; if not, another server is to be asked."""
        return not (self.draining or self.hub.deaf)

    # Connections

    async def serve(self, scope: Scope, receive: Receive, send: Send, handshake: Handshake) -> None:
        """Serve one socket to its end."""
        await Connection(self, scope, receive, send).run(handshake)

    def add(self, connection: Connection) -> None:
        """Count a connection whose user is known. The newest wins: beyond the limit the user's oldest is closed."""
        of_user = self._by_user.setdefault(connection.identity.user, [])
        of_user.append(connection)
        self._count += 1
        self._empty.clear()
        CONNECTIONS.inc()
        lasting = [each for each in of_user if not each.ending]
        for oldest in lasting[: -self.settings.max_connections_per_user]:
            oldest.displaced()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        of_user = self._by_user[connection.identity.user]
        of_user.remove(connection)
        if not of_user:
            del self._by_user[connection.identity.user]
        self._count -= 1
        CONNECTIONS.dec()
        if not self._count:
            self._empty.set()

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Count a frame while it waits for the log."""
        self._appending += 1
        try:
            yield
        finally:
            self._appending -= 1

    # The role

    async def run(self) -> None:
        """Look after the connections until `drain` is through."""
        async with role_tasks() as tasks:
            tasks.spawn(self._load.run(), name="read-load")
            while not self._drained.is_set():
                try:
                    async with asyncio.timeout(self._check_seconds):
                        await self._drained.wait()
                except TimeoutError:
                    await self._check_revocations()

    def stop_taking(self) -> None:
        """Count as not ready, and let new sockets go elsewhere; those that are open stay."""
        self.draining = True

    async def drain(self, deadline_seconds: float) -> None:
        """Close every socket with 1012, each once its messages are acknowledged, spread over a while.

        Clients come back to another server, or to this one's next run, and a crowd of them not all at once.

        Args:
            deadline_seconds: when to return at the latest. What is still open then ends with the process.
        """
        self.stop_taking()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._close_all(min(self.settings.drain_spread_seconds, deadline_seconds / 2))
                await self._empty.wait()
        except TimeoutError:
            _log.warning("connections_left", connections=self._count, in_flight=self._appending)
        finally:
            self._drained.set()

    async def _close_all(self, spread_seconds: float) -> None:
        connections = [connection for of_user in self._by_user.values() for connection in of_user]
        turns = spread(connections, pause_seconds=CLOSE_INTERVAL_SECONDS, within_seconds=spread_seconds)
        async with asyncio.TaskGroup() as closing:
            async for connection in turns:
                closing.create_task(connection.drain())

    async def _check_revocations(self) -> None:
        """Close the sockets of users who are gone; the backstop to the publication that says so at once."""
        by_uid: dict[str, list[Connection]] = {}
        for of_user in self._by_user.values():
            for connection in of_user:
                by_uid.setdefault(connection.place.uid, []).append(connection)
        try:
            deleted = await self.places.deleted(list(by_uid))
        except StoreUnavailable as error:
            _log.warning("revocation_check_skipped", error=str(error))
            return
        for uid in deleted:
            for connection in by_uid[uid]:
                connection.revoked()


def _terms(settings: Settings) -> Terms:
    return Terms(
        server_id=settings.server_id,
        app_name=settings.app_name,
        limits=Limits(
            frame_bytes=settings.max_frame_bytes,
            content_characters=settings.max_content_characters,
            connections_per_user=settings.max_connections_per_user,
            send_queue_bytes=settings.send_queue_bytes,
            metadata_bytes=settings.max_metadata_bytes,
            messages=settings.user_rate_limit_max_requests,
            messages_window_seconds=settings.user_rate_limit_window_seconds,
        ),
        models=frozenset({settings.openai_model, *settings.allowed_models}),
    )
