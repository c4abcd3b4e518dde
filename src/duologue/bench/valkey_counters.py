"""What a Redis or Valkey counts of its own traffic: `total_net_input_bytes` and `total_net_output_bytes` of `INFO`."""

from __future__ import annotations

import socket
from contextlib import suppress
from io import BufferedRWPair
from typing import Final

from duologue.bench.hop_bytes import NO_BYTES, HopBytes
from duologue.engines.redis_address import RedisAddress, parse_redis_url

_ANSWER_SECONDS: Final = 2.0
_QUESTION: Final = b"*3\r\n$4\r\nINFO\r\n$6\r\nserver\r\n$5\r\nstats\r\n"


class ValkeyCounters:
    """The traffic of a server, without what asking for it takes. It blocks, for 2 s at most. To be closed.

    A server that is started again counts from zero; what the earlier one had counted is kept, as far as last asked.

    Args:
        url: as `REDIS_URL` takes it, without TLS.

    Raises:
        StartRefused: it is no such URL.
    """

    def __init__(self, url: str) -> None:
        self._address = parse_redis_url(url)
        self._stream: BufferedRWPair | None = None
        self._run_id = b""
        self._own = NO_BYTES
        """Of this connection; of earlier ones to the same process of the server in `_own_before`."""
        self._own_before = NO_BYTES
        self._last = NO_BYTES
        self._before = NO_BYTES
        """What earlier processes of the server had counted when they were last asked."""

    def close(self) -> None:
        """Close the connection."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError):  # a question that was not sent yet, to a server that is gone
                stream.close()

    def read(self) -> HopBytes:
        """Return what has gone over all its connections since it was started, payload of the protocol only.

        Raises:
            OSError: it does not answer, or not as such a server does.
        """
        try:
            if self._stream is None:
                self._connect()
            self._last = self._ask()
        except OSError:
            self.close()
            raise
        return self._before + self._last

    def _connect(self) -> None:
        self._stream = _connected(self._address)
        self._own_before, self._own = self._own_before + self._own, NO_BYTES
        if not self._address.password:
            return
        words = [word for word in ("AUTH", self._address.username, self._address.password) if word]
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in map(str.encode, words))
        if not self._exchange(b"*%d\r\n%s" % (len(words), parts)).startswith(b"+OK"):
            raise OSError("the server refuses the password")

    def _ask(self) -> HopBytes:
        received = self._own.from_server  # it counts its answer when that is sent
        told = dict(line.partition(b":")[::2] for line in self._exchange(_QUESTION).split(b"\r\n"))
        try:
            run_id = told[b"run_id"]
            to_server, from_server = int(told[b"total_net_input_bytes"]), int(told[b"total_net_output_bytes"])
        except (KeyError, ValueError) as error:
            raise OSError("the server does not count its traffic") from error
        if run_id != self._run_id:
            self._before, self._own_before = self._before + self._last, NO_BYTES
            self._run_id = run_id
        return HopBytes(to_server, from_server) - self._own_before - HopBytes(self._own.to_server, received)

    def _exchange(self, command: bytes) -> bytes:
        """Send a command and return the answer, a status or a string; both count as this connection's own."""
        assert self._stream is not None  # noqa: S101  # `read` connects first
        self._stream.write(command)
        self._stream.flush()
        head = self._stream.readline()
        if not head.endswith(b"\r\n"):
            raise OSError("the server has closed the connection")
        body = self._stream.read(int(head[1:]) + 2) if head.startswith(b"$") else b""
        self._own += HopBytes(len(command), len(head) + len(body))
        return body or head


def _connected(address: RedisAddress) -> BufferedRWPair:
    if address.tls is not None:
        raise OSError("its traffic is not read over TLS")
    if address.path:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(address.path)
        except OSError:
            connection.close()
            raise
    else:
        connection = socket.create_connection((address.host, address.port), _ANSWER_SECONDS)
    with connection:  # the stream keeps it open
        return connection.makefile("rwb")
