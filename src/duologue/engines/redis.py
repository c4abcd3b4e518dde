"""One pipelined connection to Redis or Valkey, for the hot path.

redis-py spends 28 µs of CPU on a pipelined command, the same command on a bare socket with hiredis 4 µs: at tens of
thousands of scripts a second that decides. So commands are packed and replies parsed by hiredis here, every command
of one turn of the event loop leaves in one write, and replies come back in order to the futures that wait for them.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import hiredis
import structlog

from duologue.domain.errors import DuologueError, Permanent, RedisUnavailable, StartRefused
from duologue.domain.tasks import end_task
from duologue.engines.redis_address import parse_redis_url

_log = structlog.get_logger(__name__)

Argument = bytes | str | int | float
Reply = Any

MAX_IN_FLIGHT: Final = 65_536
"""Calls that wait for replies at most; more than that and Redis is as good as away."""

_TEMPORARY: Final = frozenset(
    ["LOADING", "OOM", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS"],
)
_DENIED: Final = ("WRONGPASS", "NOAUTH", "NOPERM")
_DENIED_IN_SCRIPT: Final = "ACL failure in script"


class RedisCommandError(Permanent):
    """Redis answered a command with an error that repeating it will not change."""


class RedisDenied(RedisUnavailable):
    """Redis does not let this user do that. The data is not at fault, and operators can mend it: so it is repeated."""

    def __init__(self, answer: str) -> None:
        super().__init__(f"Redis does not allow it: {answer}")
        self.answer = answer


class Script:
    """A Lua script, loaded on every connection that may run it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def from_file(cls, path: Path) -> Script:
        """Read a script from a file of the package."""
        return cls(path.read_text(encoding="utf-8"))


class _Call:
    """A command under way. `again` is what to send instead if the script turns out not to be loaded."""

    __slots__ = ("again", "future", "since")

    def __init__(self, future: asyncio.Future[Reply], since: float, again: tuple[Argument, ...] | None = None) -> None:
        self.future = future
        self.since = since
        self.again = again


class _Wire(asyncio.Protocol):
    """Bytes in and out of one connection: replies go to `on_reply` in order, its end to `on_lost`."""

    def __init__(self, on_reply: Callable[[Reply], None], on_lost: Callable[[_Wire, Exception | None], None]) -> None:
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream connection has a stream transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self, exc)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._on_reply(reply)

    def send(self, arguments: tuple[Argument, ...]) -> None:
        """Send a command with all others of this turn of the event loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(arguments))  # type: ignore[arg-type]  # its stub asks for one type at a time

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        # One that was lost in this turn takes nothing more, and uvloop's says so by raising; its end is told next.
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Connection:
    """A connection that comes back by itself; what both kinds below share."""

    def __init__(self, url: str, *, name: str, timeout_seconds: float, may_be_away: bool) -> None:
        self._address = parse_redis_url(url)
        self._name = name
        self._timeout = timeout_seconds
        self._may_be_away = may_be_away
        self._wire: _Wire | None = None
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._waiting: deque[_Call] = deque()
        self.connected = asyncio.Event()
        self.connections = 0
        """How often it has been connected so far."""
        self.run_id = ""

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            RedisUnavailable: nothing answers, and it may not be away.
            StartRefused: it answers and refuses user or password, or its certificate is not to be trusted.
        """
        try:
            await self._connect()
        except RedisUnavailable as error:
            if not self._may_be_away:
                raise
            _log.warning("redis_unavailable", connection=self._name, error=str(error))
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"redis-{self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._keeper is not None:
                await end_task(self._keeper)
        finally:
            self._drop("the connection was closed")

    def _command(
        self, arguments: tuple[Argument, ...], again: tuple[Argument, ...] | None = None
    ) -> asyncio.Future[Reply]:
        """Send a caller's command: only on a connection that was greeted, else it could come before AUTH or SELECT."""
        if self.connected.is_set() and len(self._waiting) < MAX_IN_FLIGHT:
            return self._enqueue(arguments, again)
        return _failed(RedisUnavailable("Redis cannot be reached"))

    def _enqueue(
        self, arguments: tuple[Argument, ...], again: tuple[Argument, ...] | None = None
    ) -> asyncio.Future[Reply]:
        if self._wire is None:
            return _failed(RedisUnavailable("Redis cannot be reached"))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append(_Call(future, loop.time(), again))
        self._wire.send(arguments)
        return future

    def _on_reply(self, reply: Reply) -> None:
        self._settle(self._waiting.popleft(), reply)

    def _settle(self, call: _Call, reply: Reply) -> None:
        if call.future.done():  # its caller was cancelled
            return
        if isinstance(reply, hiredis.ReplyError):
            call.future.set_exception(_error_of(str(reply)))
        else:
            call.future.set_result(reply)

    def _on_lost(self, wire: _Wire, error: Exception | None) -> None:
        if wire is self._wire:  # else it is the end of one that was dropped, and another may be up already
            self._drop(f"the connection to Redis was lost{f': {error}' if error else ''}{self._hint}")

    @property
    def _hint(self) -> str:
        """What may be wrong where a server closes before it has answered the greeting."""
        if self.connected.is_set() or self._address.path:
            return ""
        if self._address.tls is None:
            return "; if it wants TLS, its address begins with rediss://"
        return "; if it asks for a certificate of this client, the address names one by ssl_certfile"

    def _drop(self, why: str) -> None:
        """Close the connection and fail what waits on it: whether it took effect is not known."""
        wire, self._wire = self._wire, None
        self.connected.clear()
        if wire is not None:
            wire.close()
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.future.done():
                call.future.set_exception(RedisUnavailable(why))
        self._lost.set()

    async def _keep_connected(self) -> None:
        delay = 0.05
        while True:
            await self._until_lost()
            try:
                await self._connect()
            except DuologueError as error:
                _log.warning("redis_unavailable", connection=self._name, error=str(error), retry_seconds=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 1.0)
            else:
                _log.info("redis_connected", connection=self._name)
                delay = 0.05

    async def _until_lost(self) -> None:
        """Return when the connection is lost, also when it no longer answers: a stopped server keeps its sockets."""
        while self._wire is not None:
            try:
                async with asyncio.timeout(self._timeout / 4):
                    await self._lost.wait()
            except TimeoutError:
                now = asyncio.get_running_loop().time()
                if self._waiting and now - self._waiting[0].since > self._timeout:
                    self._drop(f"Redis did not answer within {self._timeout:g} s")

    async def _connect(self) -> None:
        self._lost.clear()
        try:
            async with asyncio.timeout(self._timeout):
                self._wire = await self._open_wire()
                await self._greet()
        except (OSError, DuologueError) as error:  # OSError: those of TLS and of time too
            self._drop("no connection")
            raise _greeting_error(error) from error
        self.connections += 1
        self.connected.set()

    async def _open_wire(self) -> _Wire:
        address, loop = self._address, asyncio.get_running_loop()

        def wire() -> _Wire:
            return _Wire(self._on_reply, self._on_lost)

        if address.path:
            return (await loop.create_unix_connection(wire, address.path))[1]
        return (await loop.create_connection(wire, address.host, address.port, ssl=address.tls))[1]

    async def _greet(self) -> None:
        address = self._address
        if address.password:
            names = (address.username,) if address.username else ()
            await self._enqueue(("AUTH", *names, address.password))
        if address.database:
            await self._enqueue(("SELECT", address.database))
        await self._enqueue(("CLIENT", "SETNAME", f"duologue-{self._name}"))
        self.run_id = _run_id(await self._enqueue(("INFO", "server")))


class Redis(_Connection):
    """Commands and scripts, pipelined. Open it with `async with`.

    Every call returns a future at once; calls leave in their order and take effect in it. A future fails with
    `RedisUnavailable` (whether the command took effect is not known) or `RedisCommandError`. The caller awaits it.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        scripts: Sequence[Script] = (),
        timeout_seconds: float = 5.0,
        may_be_away: bool = False,
    ) -> None:
        """Name a Redis.

        Args:
            url: where it is.
            name: of the connection, for Redis and for the log.
            scripts: are loaded on every connection.
            timeout_seconds: after which an unanswered connection is given up.
            may_be_away: entering does not need an answer: the connection comes when Redis does.
        """
        super().__init__(url, name=name, timeout_seconds=timeout_seconds, may_be_away=may_be_away)
        self._scripts = scripts

    def call(self, *arguments: Argument) -> asyncio.Future[Reply]:
        """Run one command."""
        return self._command(arguments)

    def run(
        self, script: Script, keys: Sequence[Argument], arguments: Sequence[Argument] = ()
    ) -> asyncio.Future[Reply]:
        """Run a script by its digest, or whole if Redis has forgotten it."""
        tail = (len(keys), *keys, *arguments)
        return self._command(("EVALSHA", script.sha, *tail), ("EVAL", script.source, *tail))

    def _settle(self, call: _Call, reply: Reply) -> None:
        if call.again is not None and isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            self._send_whole(call, call.again)
        else:
            super()._settle(call, reply)

    def _send_whole(self, call: _Call, arguments: tuple[Argument, ...]) -> None:
        if self._wire is None:
            call.future.set_exception(RedisUnavailable("Redis cannot be reached"))
            return
        call.again = None
        self._waiting.append(call)
        self._wire.send(arguments)

    async def _greet(self) -> None:
        await super()._greet()
        for script in self._scripts:
            await self._enqueue(("SCRIPT", "LOAD", script.source))


class Subscription(_Connection):
    """A connection that only hears: publications go to `on_message(channel, payload)` as they come.

    `on_connected` is called after every reconnection, when all subscriptions of the lost connection are gone but that
    of `channel`, which every connection has from its greeting on.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        on_message: Callable[[bytes, bytes], None],
        on_connected: Callable[[], None] = lambda: None,
        channel: str = "",
        timeout_seconds: float = 5.0,
        may_be_away: bool = False,
    ) -> None:
        super().__init__(url, name=name, timeout_seconds=timeout_seconds, may_be_away=may_be_away)
        self._channel = channel
        self._on_message = on_message
        self._on_connected = on_connected

    async def subscribe(self, channel: str) -> None:
        """Hear `channel` from now on; returns when Redis has confirmed it.

        Raises:
            RedisUnavailable: it cannot be reached.
        """
        await self._command(("SUBSCRIBE", channel))

    async def unsubscribe(self, channel: str) -> None:
        """Hear `channel` no more. Raises RedisUnavailable."""
        await self._command(("UNSUBSCRIBE", channel))

    def renew(self, why: str) -> None:
        """Give this connection up for another one, if there is one: it looks alive, and is not."""
        if self.connected.is_set():
            _log.warning("subscription_renewed", connection=self._name, reason=why)
            self._drop(why)

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply, list) and reply[0] == b"message":
            self._on_message(reply[1], reply[2])
        else:
            super()._on_reply(reply)

    async def _greet(self) -> None:
        await super()._greet()
        if self._channel:
            await self._enqueue(("SUBSCRIBE", self._channel))

    async def _connect(self) -> None:
        await super()._connect()
        if self._keeper is not None:  # not the first connection
            self._on_connected()


def _failed(error: DuologueError) -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _error_of(text: str) -> DuologueError:
    code = text.split(" ", 1)[0]
    if code in _TEMPORARY:
        return RedisUnavailable(f"Redis refuses for now: {text}")
    if code in _DENIED or _DENIED_IN_SCRIPT in text:
        return RedisDenied(text)
    return RedisCommandError(text)


def _greeting_error(error: OSError | DuologueError) -> DuologueError:
    """Return what tells why there is no connection: for whoever starts a program, and for the log."""
    match error:
        case ssl.SSLCertVerificationError():
            return StartRefused(
                f"the certificate of Redis is not trusted: {error.verify_message}"
                " (REDIS_SSL_CA_LOCATION names the authorities to trust)"
            )
        case ssl.SSLError():
            return RedisUnavailable(f"no TLS with Redis: {error}; an address without TLS begins with redis://")
        case OSError():
            return RedisUnavailable(f"Redis does not answer: {str(error) or type(error).__name__}")
        case RedisDenied():
            return StartRefused(f"Redis refuses the connection: {error.answer}")
        case RedisCommandError():
            return StartRefused(f"Redis refuses the connection: {error}")
        case _:
            return error


def _run_id(info: bytes) -> str:
    for line in info.splitlines():
        if line.startswith(b"run_id:"):
            return line[7:].decode()
    return ""
