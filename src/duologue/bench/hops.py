"""Bytes on each hop: between those who talk to a server and that server.

Each hop has one source, the same in every mode, so that figures can be compared:
- **a server with TCP ports** (nginx, websocket-server, api, Kafka, PostgreSQL, the model): the kernel's own counters of
  each connection, read at the end that has opened it (`sock_diag`). They are bytes of the stream, headers of TCP and
  repetitions left out, TLS included. Not for servers on Unix sockets, for which there are no such counters.
- **Valkey or Redis**: its own counters (`INFO`), whether it listens on TCP or, as the bundled one, on a Unix socket.

What is wrong with it: what a connection carries between the last reading and its end is known only where the kernel
tells of connections that end; Linux does, but may drop some of thousands that end at once, and then the last reading
counts. The end of a direction (FIN) counts as one byte. Of a Valkey that is killed, what came after the last
reading is lost. A hop that cannot be read is unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Self, TypeAlias

import msgspec

from duologue.bench.hop_bytes import NO_BYTES, HopBytes
from duologue.bench.sock_diag import Figures, SockDiag, SockDiagUnavailable
from duologue.bench.valkey_counters import ValkeyCounters
from duologue.domain.errors import StartRefused


class TcpPorts(msgspec.Struct, frozen=True):
    """A server, or several of a kind, by the ports that they listen on."""

    ports: frozenset[int]


class RedisServer(msgspec.Struct, frozen=True):
    """A Valkey or Redis by its URL, as `REDIS_URL` takes it."""

    url: str


class Uncounted(msgspec.Struct, frozen=True):
    """A server whose bytes nobody counts, and why, for the reader of a report."""

    reason: str


Hop: TypeAlias = TcpPorts | RedisServer | Uncounted

UNIX_SOCKET = Uncounted("it listens on a Unix socket, whose bytes nobody counts")


class Hops:
    """Counts from `__enter__` on. It blocks while it reads: call it from a thread of its own if somebody waits.

    Args:
        hops: by name. A port belongs to one of them.
    """

    def __init__(self, hops: Mapping[str, Hop]) -> None:
        self._tcp = {name: hop.ports for name, hop in hops.items() if isinstance(hop, TcpPorts)}
        self._redis = {name: hop.url for name, hop in hops.items() if isinstance(hop, RedisServer)}
        self._context = ExitStack()
        self._connections: _Connections | None = None
        self._counters: dict[str, ValkeyCounters] = {}
        self._before: dict[str, HopBytes] = {}
        self._last: dict[str, HopBytes] = {}
        self.unknown = {name: hop.reason for name, hop in hops.items() if isinstance(hop, Uncounted)}
        """The hops that cannot be read, and why."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open_connections(stack)
            self._open_counters(stack)
            self.read()
            self._context = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def read(self) -> dict[str, HopBytes]:
        """Return the bytes on each hop since the beginning; unknown ones are not in it.

        A server that does not answer right now keeps what it had at the last reading.
        """
        for name, now in self._read().items():
            self._last[name] = now - self._before.setdefault(name, now)
        return dict(self._last)

    def _open_connections(self, stack: ExitStack) -> None:
        if not self._tcp:
            return
        try:
            diagnosis = stack.enter_context(SockDiag(frozenset[int]().union(*self._tcp.values())))
        except SockDiagUnavailable as error:
            self.unknown |= dict.fromkeys(self._tcp, f"not available: {error}")
            return
        self._connections = _Connections(diagnosis)

    def _open_counters(self, stack: ExitStack) -> None:
        for name, url in self._redis.items():
            try:
                counters = ValkeyCounters(url)
                stack.callback(counters.close)
                self._before[name] = counters.read()
            except (OSError, StartRefused) as error:
                self.unknown[name] = f"not available: {error}"
                continue
            self._counters[name] = counters

    def _read(self) -> dict[str, HopBytes]:
        found: dict[str, HopBytes] = {}
        if self._connections is not None:
            with suppress(SockDiagUnavailable):  # too busy to answer in time
                by_port = self._connections.read()
                for name, ports in self._tcp.items():
                    found[name] = sum((by_port.get(port, NO_BYTES) for port in ports), NO_BYTES)
        for name, counters in self._counters.items():
            with suppress(OSError):  # it is away; it may come back
                found[name] = counters.read()
        return found


class _Connections:
    """All connections to some ports, those that have ended among them, told from each other by the kernel's cookie."""

    def __init__(self, diagnosis: SockDiag) -> None:
        self._diagnosis = diagnosis
        self._open: dict[int, Figures] = {}
        self._vanished: dict[int, Figures] = {}
        """Not there any more, and their last figures not told (yet)."""
        self._ended: dict[int, HopBytes] = {}

    def read(self) -> dict[int, HopBytes]:
        """Return the bytes by port. Raises SockDiagUnavailable."""
        now = {figures.cookie: figures for figures in self._diagnosis.open()}
        for cookie in self._open.keys() - now.keys():
            self._vanished[cookie] = self._open[cookie]
        for figures in self._diagnosis.ended():
            now.pop(figures.cookie, None)  # it has ended since the line above
            self._vanished.pop(figures.cookie, None)
            _add(self._ended, figures)
        self._open = now
        by_port = dict(self._ended)
        for some in (now, self._vanished):
            for figures in some.values():
                _add(by_port, figures)
        return by_port


def _add(by_port: dict[int, HopBytes], figures: Figures) -> None:
    found = HopBytes(figures.sent_bytes, figures.received_bytes)
    by_port[figures.server_port] = by_port.get(figures.server_port, NO_BYTES) + found
