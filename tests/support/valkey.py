"""Valkey servers for tests: real processes, which tests stop, kill and pause."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from duologue.engines.child import _die_with_parent
from duologue.engines.valkey import valkey_arguments

_START_SECONDS: Final = 10.0


class ValkeyServer:
    """A Valkey with the options of the bundled one. `folder` must be short: it holds the socket.

    It holds no event loop. Data and URL stay the same over `stop`, `kill` and `start`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._socket = folder / "valkey.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it and return when it has loaded its data and answers."""
        assert self._process is None, "it runs already"
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*valkey_arguments(self.folder, self._socket), *self._options],
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509  # it makes two system calls, no more
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"Valkey ended: {self._log_tail()}"
            assert time.monotonic() < deadline, f"Valkey does not answer: {self._log_tail()}"
            time.sleep(0.002)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut of the process would: what it had not written is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it in order and start it again, with its data, as another process with another `run_id`."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on; it then answers what was sent meanwhile."""
        self._signal(signal.SIGCONT)

    def command(self, *arguments: str) -> bytes:
        """Run one command on a connection of its own; return the start of the raw reply.

        Raises:
            OSError: it does not answer.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_START_SECONDS)
            connection.connect(str(self._socket))
            parts = "".join(f"${len(argument.encode())}\r\n{argument}\r\n" for argument in arguments)
            connection.sendall(f"*{len(arguments)}\r\n{parts}".encode())
            reply = connection.recv(65536)
        if reply.startswith(b"-"):
            raise OSError(reply.decode())
        return reply

    def flush(self) -> None:
        """Forget all data."""
        self.command("FLUSHALL")

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith(b"+PONG")
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)  # a paused one would not hear SIGTERM
        self._process.wait(_START_SECONDS)
        self._process = None

    def _log_tail(self) -> str:
        log = self.folder / "valkey.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else "it wrote no log"
