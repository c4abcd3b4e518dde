"""A server program as a process: started, stopped, killed and paused, by whoever needs a real one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import structlog

from duologue.domain.errors import StartRefused
from duologue.engines.child import die_with_parent

_log = structlog.get_logger(__name__)

_LINUX: Final = sys.platform == "linux"
_POLL_SECONDS: Final = 0.01
_LOG_TAIL_BYTES: Final = 2000

_starter: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")
"""The kernel ends a child with the *thread* that started it. This one lives as long as the process, so servers may be
started from any thread."""


class EngineMissing(StartRefused):
    """A program of an engine is not on this machine; the message says which and how to get it."""


class ServerProcess(ABC):
    """A server with its data and configuration in a folder of its own.

    Either `start` and its counterparts run it as a child, which ends with this process however that ends; or a
    supervisor runs `command` as `user`, in the foreground, after `prepare`. Data and addresses stay the same over all
    of these. It holds no event loop: from one, call it by `asyncio.to_thread`.
    """

    title: ClassVar[str]
    start_seconds: ClassVar[float] = 30.0
    """How long it may take until it answers."""

    stop_seconds: ClassVar[float] = 10.0
    """How long it may take to end in order."""

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """Ends it in order, its connections closed."""

    death_signal: ClassVar[signal.Signals] = signal.SIGKILL
    """What the kernel sends it when this process ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments, to run in the foreground. It logs to its standard output and error.

        Raises:
            EngineMissing: the program is not there.
        """

    @property
    def user(self) -> int | None:
        """The id of the user that it has to run as; None: this process's own."""
        return None

    @abstractmethod
    def prepare(self) -> None:
        """Make its folder, configuration and first data, as far as they are missing. May take seconds.

        Raises:
            EngineMissing: a program is not there.
            StartRefused: it cannot be prepared; the message says why.
        """

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether it does its work: it has loaded its data and answers a request."""

    @property
    def log(self) -> Path:
        """Where it logs when it runs as a child."""
        return self.folder / "log"

    @property
    def running(self) -> bool:
        """Whether it runs as a child of this process, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of its process.

        Raises:
            StartRefused: it does not run.
        """
        return self._running().pid

    def start(self) -> None:
        """Prepare and start it; return when it answers.

        Raises:
            EngineMissing: a program is not there.
            StartRefused: it runs already, or it does not come up; the message has the end of its log.
        """
        if self.running:
            raise StartRefused(f"{self.title} runs already")
        self.prepare()
        self._process = _starter.submit(self._spawn).result()
        try:
            self._wait_for_answer()
        except StartRefused:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order; a server that has not ended after `stop_seconds` is killed."""
        if self._process is None:
            return
        self._process.send_signal(self.stop_signal)
        self._send(signal.SIGCONT)  # a paused one would not hear of it
        try:
            self._process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            _log.warning("server_killed", server=self.title, stop_seconds=self.stop_seconds)
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it and its processes at once, as a crash would: what it had not written is gone."""
        if self._process is None:
            return
        self._send(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """End it in order and start it again, with its data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        self._running()
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on; it then answers what was sent meanwhile."""
        self._running()
        self._send(signal.SIGCONT)

    def restore(self) -> None:
        """Let it run and answer again, whatever was done to it."""
        if self.running:
            self.resume()
            self._wait_for_answer()
        else:
            self.start()

    def remove(self) -> None:
        """End it at once and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self) -> str:
        """Return the end of its log."""
        if not self.log.exists():
            return "it wrote no log"
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = self.command
        with self.log.open("ab") as log:
            try:
                return subprocess.Popen(
                    command,
                    user=self.user,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C in the terminal is not for it
                    preexec_fn=die_with_parent(os.getpid(), self.death_signal) if _LINUX else None,  # noqa: PLW1509
                )
            except OSError as error:
                raise StartRefused(f"{self.title} cannot be started: {error}") from error

    def _wait_for_answer(self) -> None:
        process = self._running()
        deadline = time.monotonic() + self.start_seconds
        while not self.answers():
            if process.poll() is not None:
                raise StartRefused(f"{self.title} ended with status {process.returncode}: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise StartRefused(f"{self.title} does not answer: {self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StartRefused(f"{self.title} does not run")
        return self._process

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to the server and to each process that it has forked: they need not be one group."""
        process = self._running()
        if process.poll() is not None:
            return
        for pid in [process.pid, *children(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def children(parent: int) -> list[int]:
    """Return a process's children as the kernel's table of processes has them."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()  # its name before that may hold anything
            if int(fields[1]) == parent:
                children.append(int(stat.parent.name))
    return children


def write_private(path: Path, text: str) -> None:
    """Write a file that only this process's user can read: it may hold a password."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:  # noqa: PTH123  # a descriptor, not a path
        file.write(text)
