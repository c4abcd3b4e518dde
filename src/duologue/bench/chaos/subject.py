"""The system that is hurt: its parts by name, how each is killed, stopped, paused and brought back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import aiohttp

from duologue.bench.chaos.plan import Mode
from duologue.bench.distributed import DistributedSystem, OwnEngines, distributed_system, own_engines
from duologue.bench.process import DuologueProcess
from duologue.bench.processes import descendants, program_of
from duologue.bench.system import EmbeddedSystem, System, embedded_system
from duologue.cluster.server_process import ServerProcess
from duologue.cluster.valkey import ValkeyServer
from duologue.domain.errors import StartRefused

_SETTINGS: Final = {
    "USER_RATE_LIMIT_MAX_REQUESTS": "1000000",
    "TOKEN_RATE_LIMIT_MAX_REQUESTS": "1000000",
    "MODEL_FIRST_TOKEN_TIMEOUT_SECONDS": "12",
    "MODEL_SILENCE_TIMEOUT_SECONDS": "10",
}
"""No limit ends what is to be seen, and a model that says nothing is noticed in the time of a run. But a worker that
hangs for 9 s must not take that for the model's silence when it wakes up: it would give its replies up by itself, and
no fence would have to hold."""

_SHARED_SETTINGS: Final = {"KAFKA_PARTITIONS": "6", "DATABASE_POOL_SIZE": "5"}
_LOOK_SECONDS: Final = 0.02
_BACK_SECONDS: Final = 30.0


class Part(Protocol):
    """Something that can be hurt."""

    async def kill(self) -> None:
        """End it at once."""
        ...

    async def stop(self) -> int | None:
        """End it in order; return its exit code if it is of interest."""
        ...

    async def start(self) -> None:
        """Start it again, until it is ready. Raises StartRefused."""
        ...

    async def pause(self) -> None:
        """Let it hang."""
        ...

    async def resume(self) -> None:
        """Let it go on."""
        ...


class Subject(Protocol):
    """A running system and its parts."""

    mode: Mode
    system: System
    database_url: str
    redis_url: str

    def part(self, name: str) -> Part:
        """Return a part of it by its name in a plan."""
        ...

    def processes(self) -> Mapping[str, DuologueProcess]:
        """Return the program's own processes by name."""
        ...

    async def flush(self) -> None:
        """Let Redis forget all data."""
        ...

    async def restore(self) -> None:
        """Let all of it run and answer again, whatever was done to it. Raises StartRefused."""
        ...


class _RolePart:
    """A process of the program."""

    def __init__(self, process: DuologueProcess) -> None:
        self._process = process

    async def kill(self) -> None:
        await self._running().kill()

    async def stop(self) -> int:
        return await self._running().terminate()

    async def start(self) -> None:
        await self._process.start()

    async def pause(self) -> None:
        self._running().pause()

    async def resume(self) -> None:
        self._running().resume()

    def _running(self) -> DuologueProcess:
        """Return the process. Its id is another's by now if it has ended by itself: then no signal is sent."""
        if not self._process.running:
            raise StartRefused(f"{self._process.command} has ended by itself: {self._process.output()[-1000:]}")
        return self._process


class _EnginePart:
    """An engine of the distributed mode."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)

    async def pause(self) -> None:
        await asyncio.to_thread(self._server.pause)

    async def resume(self) -> None:
        await asyncio.to_thread(self._server.resume)


class _BundledValkey:
    """The Valkey inside of the embedded mode, which its parent starts again by itself."""

    def __init__(self, system: EmbeddedSystem) -> None:
        self._system = system
        self._paused: int | None = None

    def _pid(self) -> int:
        found = [pid for pid in descendants(self._system.pid) if program_of(pid) == "valkey-server"]
        if not found:
            raise StartRefused("the bundled Valkey does not run")
        return found[0]

    async def kill(self) -> None:
        os.kill(self._pid(), signal.SIGKILL)

    async def stop(self) -> None:
        os.kill(self._pid(), signal.SIGTERM)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _BACK_SECONDS
        while loop.time() < deadline:
            try:
                self._pid()
            except StartRefused:
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                return await self._system.until_ready()
        raise StartRefused("the bundled Valkey is not started again")

    async def pause(self) -> None:
        self._paused = self._pid()
        os.kill(self._paused, signal.SIGSTOP)

    async def resume(self) -> None:
        if self._paused is not None and self._paused in descendants(self._system.pid):
            os.kill(self._paused, signal.SIGCONT)
        self._paused = None


class _Everything:
    """All processes of the program at once."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def kill(self) -> None:
        await self._system.kill()

    async def stop(self) -> int:
        return await self._system.terminate()

    async def start(self) -> None:
        await self._system.start()

    async def pause(self) -> None:
        raise NotImplementedError

    async def resume(self) -> None:
        raise NotImplementedError


class EmbeddedSubject:
    """`duologue up`."""

    mode: Mode = "embedded"

    def __init__(self, system: EmbeddedSystem) -> None:
        self.system: System = system
        self._embedded = system
        self.database_url = f"sqlite:///{system.data_dir / 'duologue.db'}"
        self.redis_url = f"unix://{system.data_dir / 'valkey' / 'valkey.sock'}"
        self._valkey = _BundledValkey(system)

    def part(self, name: str) -> Part:
        return self._valkey if name == "valkey" else _RolePart(self._embedded)

    def processes(self) -> Mapping[str, DuologueProcess]:
        return {"duologue": self._embedded}

    async def flush(self) -> None:
        raise StartRefused("the Valkey of the embedded mode holds the log: its loss is not allowed")

    async def restore(self) -> None:
        if self._embedded.running:
            self._embedded.resume()
            await self._valkey.resume()
        await self.system.start()


class DistributedSubject:
    """Roles behind nginx, on Kafka, Valkey and PostgreSQL."""

    mode: Mode = "distributed"

    def __init__(self, system: DistributedSystem, engines: OwnEngines, database_url: str) -> None:
        self.system: System = system
        self._distributed = system
        self.database_url = database_url
        self.redis_url = engines.valkey.url
        self._engines: dict[str, ServerProcess] = {
            "kafka": engines.kafka,
            "valkey": engines.valkey,
            "postgresql": engines.postgres,
            "nginx": system.nginx,
        }
        self._valkey: ValkeyServer = engines.valkey

    def part(self, name: str) -> Part:
        if name == "everything":
            return _Everything(self.system)
        engine = self._engines.get(name)
        return _EnginePart(engine) if engine is not None else _RolePart(self._distributed[name])

    def processes(self) -> Mapping[str, DuologueProcess]:
        return {name: self._distributed[name] for name in self._distributed.names}

    async def flush(self) -> None:
        await asyncio.to_thread(self._valkey.flush)

    async def restore(self) -> None:
        for engine in self._engines.values():
            await asyncio.to_thread(engine.restore)
        for process in self.processes().values():
            if process.running:
                process.resume()
        await self.system.start()


@asynccontextmanager
async def open_subject(mode: Mode, folder: Path, settings: Mapping[str, str]) -> AsyncIterator[Subject]:
    """Start a system on engines and data of its own; all of it ends with the context.

    Args:
        mode: which one.
        folder: for data and logs, which stay.
        settings: beside those of every run; the model's address among them.

    Raises:
        StartRefused: it does not start; EngineMissing if a program is not on this machine.
    """
    if mode == "embedded":
        async with embedded_system(folder / "data", {**_SETTINGS, **settings}) as embedded:
            yield EmbeddedSubject(embedded)
    else:
        async with own_engines(lasting=True) as engines, distributed_subject(folder, engines, settings) as subject:
            yield subject


@asynccontextmanager
async def distributed_subject(
    folder: Path,
    engines: OwnEngines,
    settings: Mapping[str, str],
    *,
    database: str = "duologue",
    topic_prefix: str = "",
) -> AsyncIterator[DistributedSubject]:
    """Start the roles on given engines. See `open_subject`; the database is migrated."""
    shared = engines.shared(database=database, kafka_topic_prefix=topic_prefix)
    async with distributed_system(folder, shared, {**_SETTINGS, **_SHARED_SETTINGS, **settings}) as system:
        yield DistributedSubject(system, engines, shared.database_url)


async def metrics_of(process: DuologueProcess) -> dict[str, float]:
    """Return a process' metrics that have no labels, by name; empty if it does not answer."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"{process.url}/metrics") as response,
        ):
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return {}
    pairs = (line.split() for line in text.splitlines() if line and line[0] != "#" and "{" not in line)
    return {name: float(value) for name, value in pairs}
