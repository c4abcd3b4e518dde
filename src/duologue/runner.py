"""Runs roles and the HTTP server of one process: signals, tasks, and the drain, in its order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Final, Protocol

import structlog
import uvicorn
from starlette.types import ASGIApp

from duologue.api.request_protocol import RequestProtocol
from duologue.config import Settings
from duologue.domain.errors import Retryable
from duologue.listener import BACKLOG
from duologue.observability.metrics import LOOP_FAILURES

_log = structlog.get_logger(__name__)

PING_INTERVAL_SECONDS: Final = 25.0
PONG_TIMEOUT_SECONDS: Final = 10.0
_RESTART_SECONDS: Final = 1.0
_LEAST_DRAIN_SECONDS: Final = 5.0
"""For a role whose turn comes when the time is over: sockets are to be closed in order even then."""
_LEAVE_SECONDS: Final = 5.0
"""For `run` to return once its role is drained."""


class Role(Protocol):
    """One of the program's roles, as the runner sees it."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None:
        """Work until `drain` is through or the task is cancelled.

        Raises:
            Retryable: it cannot go on now; it is run again after a pause.
            Permanent: it never can; the process stops.
        """
        ...

    async def drain(self, deadline_seconds: float, /) -> None:
        """Take nothing new, finish what was accepted within the deadline; `run` returns after that."""
        ...


class HttpServer(uvicorn.Server):
    """uvicorn that tells when it listens, and leaves signals alone: its own shutdown closes every socket at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp, settings: Settings, socket_protocol: type[asyncio.Protocol]) -> HttpServer:
    """Return uvicorn, set up for long-lived sockets: pings, frame limit, no compression, no access log.

    Args:
        app: the application.
        settings: the frame limit and the trusted proxies are taken from here.
        socket_protocol: uvicorn's protocol class for WebSockets.
    """
    return HttpServer(
        uvicorn.Config(
            app,
            http=RequestProtocol,
            ws=socket_protocol,
            ws_max_size=settings.max_frame_bytes,
            ws_per_message_deflate=False,
            ws_ping_interval=PING_INTERVAL_SECONDS,
            ws_ping_timeout=PONG_TIMEOUT_SECONDS,
            lifespan="off",
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=[form for proxy in settings.trusted_proxies for form in _as_peer(proxy)],
            timeout_graceful_shutdown=4,  # seconds; sockets wait 3 for their peers' answer to a close
        )
    )


def _as_peer(network: str) -> list[str]:
    """Return how the addresses of a network look as peers: on a listener for both, IPv4 comes inside of IPv6."""
    address, _, bits = network.partition("/")
    return [network] if ":" in address else [network, f"::ffff:{address}/{96 + int(bits)}"]


class Runner:
    """One process: roles beside an HTTP server, until a signal or until one of them cannot go on.

    Args:
        roles: in the order in which they are drained: who feeds others comes first.
        on_ready: called once everything runs, before waiting for the end.
        on_drain: called when the end begins.
    """

    def __init__(
        self,
        *,
        roles: Sequence[Role],
        server: HttpServer,
        listener: socket.socket,
        drain_seconds: float,
        on_ready: Callable[[], None] = lambda: None,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        self._roles = roles
        self._server = server
        self._listener = listener
        self._drain_seconds = drain_seconds
        self._on_ready = on_ready
        self._on_drain = on_drain
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, then drain; a second signal ends at once.

        Raises:
            Permanent: a role cannot go on.
        """
        async with _signals(self._on_signal):
            serving = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http")
            working = [asyncio.create_task(_keep_running(role), name=role.name) for role in self._roles]
            try:
                await self._until_end([serving, *working])
            finally:
                await self._end(serving, working)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    async def _until_end(self, tasks: list[asyncio.Task[None]]) -> None:
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        listening = asyncio.create_task(self._server.listening.wait(), name="listening")
        try:
            await asyncio.wait([listening, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if self._server.listening.is_set():
                _settle_garbage_collector()
                self._on_ready()
            if not any(task.done() for task in tasks):
                await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled([stop, listening])
        for task in tasks:
            if task.done():
                task.result()  # raises what ended it

    async def _end(self, serving: asyncio.Task[None], working: list[asyncio.Task[None]]) -> None:
        _log.info("draining", at_most_seconds=self._drain_seconds)
        self._on_drain()
        drain = asyncio.create_task(self._drain(working), name="drain")
        at_once = asyncio.create_task(self._at_once.wait(), name="at-once")
        try:
            await asyncio.wait([drain, at_once], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._server.should_exit = True
            await _cancelled([drain, at_once, *working])
            await serving

    async def _drain(self, working: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_seconds
        for role, task in zip(self._roles, working, strict=True):
            if not task.done():
                await role.drain(max(deadline - loop.time(), _LEAST_DRAIN_SECONDS))
                # Its last commit, and its leave of those who wait for it, come after `drain`.
                await asyncio.wait([task], timeout=_LEAVE_SECONDS)
                _log.info("role_drained", role=role.name)


def _settle_garbage_collector() -> None:
    """Leave out of every later collection what start-up has made, which stays for the life of the process.

    A full collection would look at all modules each time, which stops the event loop for tens of milliseconds.
    Messages leave few cycles behind, so collections may be rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _keep_running(role: Role) -> None:
    while True:
        try:
            return await role.run()
        except Retryable as error:
            LOOP_FAILURES.labels(role.name).inc()
            _log.warning("role_interrupted", role=role.name, error=str(error), retry_seconds=_RESTART_SECONDS)
            await asyncio.sleep(_RESTART_SECONDS)


async def _cancelled(tasks: Sequence[asyncio.Task[None] | asyncio.Task[bool]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            _log.error("task_failed", exc_info=result)


@contextlib.asynccontextmanager
async def _signals(on_signal: Callable[[], None]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
