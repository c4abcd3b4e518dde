"""The mock as a server in an event loop: what each path answers."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from duologue.bench.mock_llm import wire
from duologue.bench.mock_llm.config import MockConfig, configured
from duologue.bench.mock_llm.connection import Connection
from duologue.bench.mock_llm.draws import Draws
from duologue.bench.mock_llm.replies import Peer, Replies, Reply
from duologue.bench.mock_llm.request import last_said, read_chat
from duologue.bench.mock_llm.stats import Cost, Meter, MockStats
from duologue.domain.errors import Rejected, StartRefused

_COMPLETIONS: Final = b"/v1/chat/completions"
_INVALID: Final = "invalid_request_error"


class MockServer:
    """A running mock. `config` may be replaced at any time; it holds for the requests after that."""

    def __init__(self, config: MockConfig, seed: int | None = None) -> None:
        self._replies = Replies(config, Draws(seed))
        self._meter = Meter()
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._paths: dict[bytes, dict[bytes, Callable[[bytes], bytes]]] = {
            b"/v1/models": {b"GET": self._tell_models},
            b"/health": {b"GET": self._tell_health},
            b"/stats": {b"GET": self._tell_stats},
            b"/config": {b"GET": self._tell_config, b"POST": self._configure},
            b"/reset": {b"POST": self._reset},
        }

    @property
    def config(self) -> MockConfig:
        return self._replies.config

    @property
    def stats(self) -> MockStats:
        return self._replies.stats

    def cost(self) -> Cost:
        """Return what it has used since the start or the last reset."""
        return self._meter.cost(self.stats)

    async def listen(self, host: str, port: int) -> None:
        """Listen there; port 0 takes a free one.

        Raises:
            StartRefused: another program listens there, or it cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self._answer, self._connections), host, port, backlog=4096
            )
        except OSError as error:
            raise StartRefused(
                f"cannot listen on {host}:{port}: {error.strerror or error}. Choose with --host and --port."
            ) from error

    @property
    def port(self) -> int:
        return int(self._address()[1])

    @property
    def base_url(self) -> str:
        """What clients on this machine set as the base URL."""
        address = ipaddress.ip_address(self._address()[0])
        if address.is_unspecified:
            address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
        host = str(address) if address.version == 4 else f"[{address}]"
        return f"http://{host}:{self.port}/v1"

    async def aclose(self) -> None:
        """Stop listening and close every connection."""
        assert self._server is not None  # noqa: S101
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def _address(self) -> tuple[str, int]:
        assert self._server is not None  # noqa: S101
        name: tuple[str, int] = self._server.sockets[0].getsockname()
        return name

    def _answer(self, peer: Peer, method: bytes, path: bytes, body: bytes) -> Reply | None:
        if path == _COMPLETIONS:
            if method == b"POST":
                return self._complete(peer, body)
            peer.write(_nothing_there(method, path, [b"POST"]))
            return None
        methods = self._paths.get(path, {})
        handle = methods.get(method)
        peer.write(_nothing_there(method, path, list(methods)) if handle is None else handle(body))
        return None

    def _complete(self, peer: Peer, body: bytes) -> Reply | None:
        stats, config = self.stats, self.config
        stats.requests += 1
        try:
            asked = read_chat(body)
        except Rejected as error:
            stats.unreadable += 1
            peer.write(wire.failure(b"400 Bad Request", str(error), kind=_INVALID, code=error.code))
            return None
        said = last_said(body) if config.record or config.echo else ""
        if config.record:
            stats.contents[said] = stats.contents.get(said, 0) + 1
        fault = self._replies.draws.fault(config)
        if fault in {"429", "500"}:
            stats.refused += 1
            peer.write(wire.refusal(fault, config.retry_after_seconds))
            return None
        return self._replies.reply(peer, asked, fault, said if config.echo else "")

    def _tell_models(self, _body: bytes) -> bytes:
        return wire.models()

    def _tell_health(self, _body: bytes) -> bytes:
        return wire.response(b"200 OK", b'{"status":"ok"}')

    def _tell_stats(self, _body: bytes) -> bytes:
        told = msgspec.to_builtins(self.stats) | msgspec.to_builtins(self.cost())
        return wire.response(b"200 OK", msgspec.json.encode(told))

    def _tell_config(self, _body: bytes) -> bytes:
        return wire.response(b"200 OK", msgspec.json.encode(self.config))

    def _configure(self, body: bytes) -> bytes:
        try:
            changes = msgspec.json.decode(body, type=dict[str, Any])
            self._replies.config = configured(changes, self.config)
        except (msgspec.MsgspecError, UnicodeDecodeError, Rejected) as error:
            return wire.failure(b"400 Bad Request", str(error), kind=_INVALID)
        return self._tell_config(body)

    def _reset(self, _body: bytes) -> bytes:
        self._replies.stats = MockStats(in_flight=self.stats.in_flight)
        self._meter = Meter()
        return wire.response(b"200 OK", b"{}")


def _nothing_there(method: bytes, path: bytes, allowed: Sequence[bytes]) -> bytes:
    asked = f"{method.decode()} {path.decode(errors='replace')}"
    if not allowed:
        return wire.failure(b"404 Not Found", f"Invalid URL ({asked})", kind=_INVALID, code="unknown_url")
    headers = b"Allow: %b\r\n" % b", ".join(allowed)
    return wire.failure(b"405 Method Not Allowed", f"Not allowed: {asked}", kind=_INVALID, headers=headers)


async def serve(config: MockConfig, *, host: str = "127.0.0.1", port: int = 0, seed: int | None = None) -> MockServer:
    """Start a mock in this event loop; the caller ends it with `aclose`. Port 0 takes a free one.

    Raises:
        StartRefused: another program listens there, or it cannot be listened on.
    """
    server = MockServer(config, seed)
    await server.listen(host, port)
    return server
