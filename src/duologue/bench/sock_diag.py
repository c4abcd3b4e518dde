"""What the kernel counts for each TCP connection, asked through `NETLINK_SOCK_DIAG` (sock_diag(7)); Linux only.

The numbers are those of `linux/inet_diag.h` and `linux/tcp.h`. No privileges are needed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple, Self

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR: Final = 2  # NLMSG_ERROR
_DONE: Final = 3  # NLMSG_DONE
_ENDED_GROUPS: Final = 1 << 0 | 1 << 2
"""SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY: the last figures of each connection that ends."""

_INFO: Final = 2  # INET_DIAG_INFO
_FILTER: Final = 1  # INET_DIAG_REQ_BYTECODE
_JUMP: Final = 1  # INET_DIAG_BC_JMP
_REMOTE_IS: Final = 8  # INET_DIAG_BC_D_COND
_WITH_FIGURES: Final = 0xFFF & ~(1 << 2 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 10)
"""States as bits, without SYN_SENT, SYN_RECV, TIME_WAIT, CLOSE and LISTEN, which have nothing to count."""

_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI48s")
_ATTRIBUTE: Final = struct.Struct("=HH")
_PORTS: Final = struct.Struct("!HH")
_COOKIE: Final = struct.Struct("=Q")
_COUNTERS: Final = struct.Struct("=QQ")
_PORTS_AT: Final = _HEADER.size + 4
_COOKIE_AT: Final = _PORTS_AT + 40
_ATTRIBUTES_AT: Final = _HEADER.size + 72
_COUNTERS_AT: Final = 120
"""Where `tcpi_bytes_acked` and `tcpi_bytes_received` are in `struct tcp_info`; before Linux 4.2 it ended there."""

_BUFFER_BYTES: Final = 65_536  # the kernel fills 32 KiB at a time
_BACKLOG_BYTES: Final = 8_388_608
_SO_RCVBUFFORCE: Final = 33
_ANSWER_SECONDS: Final = 5.0


class SockDiagUnavailable(Exception):
    """The kernel does not tell; the message says why."""


class Figures(NamedTuple):
    """A connection as the end that has opened it sees it: what it has sent to the server's port, and received.

    Bytes of the stream, without headers and repetitions. What was sent counts once the other end has acknowledged it.
    The mark that a direction has ended (FIN) counts as one byte where the kernel has seen it.
    """

    cookie: int
    server_port: int
    sent_bytes: int
    received_bytes: int


class SockDiag:
    """Connections of this machine (network namespace) to the given ports, open ones and ended ones. To be closed.

    Args:
        ports: that servers listen on. A connection belongs to one if that is its remote port. An end whose own port is
            among them is a server's, and left out.

    Raises:
        SockDiagUnavailable: this is not Linux, the kernel refuses, or it is too old to count bytes.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = frozenset(ports)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._request = _request_filter(sorted(self._ports))
        if sys.platform != "linux":
            raise SockDiagUnavailable("only Linux tells the bytes of a connection")
        try:
            self._asking = _netlink(groups=0)
        except OSError as error:
            raise SockDiagUnavailable(f"the kernel does not let us ask: {error}") from error
        self._asking.settimeout(_ANSWER_SECONDS)
        self._ended = _ended_connections()
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its sockets."""
        self._asking.close()
        if self._ended is not None:
            self._ended.close()

    def open(self) -> list[Figures]:
        """Return the connections that there are.

        Raises:
            SockDiagUnavailable: the kernel refuses, or it is too old.
        """
        found: list[Figures] = []
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                found += self._dump(family)
        except OSError as error:
            raise SockDiagUnavailable(f"the kernel does not answer: {error}") from error
        return found

    def ended(self) -> list[Figures]:
        """Return those that have ended since the last call, with their last figures.

        A kernel may not tell, and of very many that end at once it drops some.
        """
        found: list[Figures] = []
        if self._ended is None:
            return found
        while True:
            try:
                size = self._ended.recv_into(self._buffer)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were dropped; the others are still to be read
                    raise SockDiagUnavailable(f"the kernel does not answer: {error}") from error
                continue
            for _, offset, length in _messages(self._buffer, size):
                if (figures := self._figures(offset, length)) is not None:
                    found.append(figures)

    def _dump(self, family: int) -> Iterator[Figures]:
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _WITH_FIGURES, bytes(48))
        size = _HEADER.size + len(body) + len(self._request)
        self._asking.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + body + self._request)
        done = False
        while not done:
            for kind, offset, length in _messages(self._buffer, self._asking.recv_into(self._buffer)):
                if kind == _DONE:
                    done = True
                elif kind == _ERROR:
                    (code,) = struct.unpack_from("=i", self._buffer, offset + _HEADER.size)
                    raise OSError(-code, os.strerror(-code))
                elif (figures := self._figures(offset, length)) is not None:
                    yield figures

    def _figures(self, offset: int, length: int) -> Figures | None:
        buffer = self._buffer
        own_port, server_port = _PORTS.unpack_from(buffer, offset + _PORTS_AT)
        if server_port not in self._ports or own_port in self._ports:
            return None
        at, end = offset + _ATTRIBUTES_AT, offset + length
        while at + _ATTRIBUTE.size <= end:
            size, kind = _ATTRIBUTE.unpack_from(buffer, at)
            if kind == _INFO and size < _ATTRIBUTE.size + _COUNTERS_AT + _COUNTERS.size:
                raise SockDiagUnavailable("this kernel is too old to count the bytes of a connection")
            if kind == _INFO:
                acknowledged, received = _COUNTERS.unpack_from(buffer, at + _ATTRIBUTE.size + _COUNTERS_AT)
                (cookie,) = _COOKIE.unpack_from(buffer, offset + _COOKIE_AT)
                # The connection's opening (SYN) was acknowledged as one byte.
                return Figures(cookie, server_port, max(acknowledged - 1, 0), received)
            at += _aligned(max(size, _ATTRIBUTE.size))
        return None


def _messages(buffer: memoryview, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield kind, offset and length of each message of netlink in the first `size` bytes of a buffer."""
    offset = 0
    while offset + _HEADER.size <= size:
        length, kind, *_ = _HEADER.unpack_from(buffer, offset)
        yield kind, offset, length
        offset += _aligned(max(length, _HEADER.size))


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _netlink(groups: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    try:
        opened.bind((0, groups))
    except BaseException:
        opened.close()
        raise
    return opened


def _ended_connections() -> socket.socket | None:
    """Return a socket on which the kernel tells of connections that end, None if it does not."""
    try:
        told = _netlink(_ENDED_GROUPS)
    except OSError:
        return None
    told.setblocking(False)
    with suppress(OSError):  # else the system's own limit holds, for some 250 that end between two calls
        told.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BACKLOG_BYTES)
    return told


def _request_filter(ports: list[int]) -> bytes:
    """Return the attribute that has the kernel leave out connections to other ports: "is the remote port this one? then
    go to the end, else to the next", 16 bytes a port. Behind the end is where the last "else" goes: refused."""
    if not ports:
        return b""
    program = b""
    for place, port in enumerate(ports, 1):
        program += struct.pack("=BBH", _REMOTE_IS, 12, 16) + struct.pack("=BBxxi", socket.AF_UNSPEC, 0, port)
        program += struct.pack("=BBH", _JUMP, 4, 4 + 16 * (len(ports) - place))
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(program), _FILTER) + program
