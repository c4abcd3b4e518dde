"""A distributed Duologue on this machine: every role as processes behind nginx, on engines of its own or given ones."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import aiohttp

from duologue.bench.process import DuologueProcess, status_of
from duologue.cluster.kafka import KafkaServer
from duologue.cluster.nginx import NginxServer
from duologue.cluster.ports import free_ports
from duologue.cluster.postgres import PostgresServer
from duologue.cluster.server_process import ServerProcess
from duologue.cluster.valkey import ValkeyServer
from duologue.domain.errors import StartRefused
from duologue.store.migrate import migrate

RoleName = Literal["websocket-server", "ai-consumer", "message-relay", "api"]
ConsumerRole = Literal["ai-consumer", "message-relay"]

PROCESSES: Final[Mapping[RoleName, int]] = {"websocket-server": 2, "ai-consumer": 2, "message-relay": 2, "api": 1}
"""How many of each role there are at first."""

_DATABASE: Final = "duologue"
_PROXY_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.02


@dataclass(frozen=True)
class SharedEngines:
    """Where the engines are that all roles share. The database is migrated; the prefix keeps systems apart on Kafka."""

    kafka_bootstrap_servers: str
    redis_url: str
    database_url: str
    kafka_topic_prefix: str = ""

    def environment(self) -> dict[str, str]:
        """Return the settings that name them."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka_bootstrap_servers,
            "KAFKA_TOPIC_PREFIX": self.kafka_topic_prefix,
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.database_url,
        }


class DistributedSystem:
    """Processes of every role behind nginx. They are named `<role>-<number>`, from 1; so is their `SERVER_ID`.

    Args:
        folder: for the processes' logs and nginx; it is there.
        engines: where they are.
        environment: more settings, for all roles.
        processes: how many of each role.
    """

    def __init__(
        self,
        folder: Path,
        engines: SharedEngines,
        environment: Mapping[str, str],
        processes: Mapping[RoleName, int] = PROCESSES,
    ) -> None:
        self.jwt_secret = secrets.token_urlsafe(48)
        self._folder = folder
        self._environment = {
            **engines.environment(),
            "JWT_SECRET": self.jwt_secret,
            "TRUSTED_PROXIES": "127.0.0.1",  # nginx
            **environment,
        }
        self._processes: dict[str, DuologueProcess] = {}
        for role, number in processes.items():
            for _ in range(number):
                self._add(role)
        self.nginx = NginxServer(
            folder / "nginx",
            ports=free_ports(1),
            websocket_servers=self._addresses("websocket-server"),
            api_servers=self._addresses("api"),
        )
        self.url = self.nginx.url
        self.ws_url = self.url.replace("http", "ws", 1)

    def __getitem__(self, name: str) -> DuologueProcess:
        """Return the process of that name."""
        return self._processes[name]

    @property
    def names(self) -> list[str]:
        """The names of its processes."""
        return list(self._processes)

    def of(self, role: RoleName) -> list[DuologueProcess]:
        """Return the processes of a role, in the order of their numbers."""
        return [process for process in self._processes.values() if process.command == role]

    def pids(self) -> Mapping[str, int]:
        """See `System.pids`."""
        return {name: process.pid for name, process in self._processes.items() if process.running}

    def server(self, server_id: str) -> DuologueProcess:
        """See `System.server`."""
        return self._processes[server_id]

    async def start(self) -> None:
        """Start what does not run, all at once, and return when every process is ready and nginx lets clients in.

        Raises:
            StartRefused: something is not ready in time; the message holds the end of its output.
        """
        if not self.nginx.running:
            await asyncio.to_thread(self.nginx.start)
        await asyncio.gather(*(process.start() for process in self._processes.values()))
        await self._until_reached()

    @asynccontextmanager
    async def another(
        self, role: ConsumerRole, environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[DuologueProcess]:
        """Start one more process of a role that nginx need not know of. Ready, it is one of the system's until the
        context ends, which ends it in order.

        Args:
            role: which.
            environment: settings that it alone has.

        Raises:
            StartRefused: it is not ready in time.
        """
        name = self._add(role, environment or {})
        process = self._processes[name]
        try:
            await process.start()
            yield process
        finally:
            await process.aclose()
            del self._processes[name]

    async def kill(self) -> None:
        """See `System.kill`."""
        running = self._running()
        await asyncio.gather(*(process.kill() for process in running))

    async def terminate(self) -> int:
        """See `System.terminate`."""
        return max(await asyncio.gather(*(process.terminate() for process in self._running())), default=0)

    def output(self) -> str:
        """See `System.output`."""
        return "".join(f"== {name}\n{process.output()}" for name, process in self._processes.items())

    async def aclose(self) -> None:
        """End all that runs, at once: whoever wants to see an end in order asks for it before."""
        await self.kill()
        await asyncio.to_thread(self.nginx.stop)

    def _add(self, role: RoleName, more: Mapping[str, str] = MappingProxyType({})) -> str:
        name = f"{role}-{len(self.of(role)) + 1}"
        environment = {**self._environment, **more, "SERVER_ID": name}
        self._processes[name] = DuologueProcess(role, self._folder / f"{name}.log", environment)
        return name

    def _addresses(self, role: RoleName) -> list[str]:
        return [f"127.0.0.1:{process.port}" for process in self.of(role)]

    def _running(self) -> list[DuologueProcess]:
        return [process for process in self._processes.values() if process.running]

    async def _until_reached(self) -> None:
        """Wait until nginx passes on to both of its roles: it leaves a server alone for a while that it found away."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PROXY_SECONDS
        async with aiohttp.ClientSession() as session:
            while loop.time() < deadline:
                api = await status_of(session, f"{self.url}/ready")
                sockets = await status_of(session, f"{self.url}/ws")  # no handshake: the server itself refuses it
                if api == 200 and sockets in range(400, 500):
                    return
                await asyncio.sleep(_LOOK_SECONDS)
        raise StartRefused(f"nginx reaches not all: /ready {api}, /ws {sockets}\n{self.nginx.log_tail()}")


@asynccontextmanager
async def distributed_system(
    folder: Path,
    engines: SharedEngines,
    environment: Mapping[str, str],
    processes: Mapping[RoleName, int] = PROCESSES,
) -> AsyncIterator[DistributedSystem]:
    """Start a distributed system, ready; it ends with the context. For the arguments see `DistributedSystem`.

    Raises:
        EngineMissing: there is no nginx.
        StartRefused: it does not start.
    """
    system = DistributedSystem(folder, engines, environment, processes)
    try:
        await system.start()
        yield system
    finally:
        await system.aclose()


@dataclass(frozen=True)
class OwnEngines:
    """Running engines, to be stopped, killed, paused and started again."""

    kafka: KafkaServer
    valkey: ValkeyServer
    postgres: PostgresServer

    def shared(self, *, database: str = _DATABASE, kafka_topic_prefix: str = "") -> SharedEngines:
        """Return where they are, for a system that uses that database and topics with that prefix."""
        return SharedEngines(
            self.kafka.bootstrap_servers, self.valkey.url, self.postgres.url(database), kafka_topic_prefix
        )

    def restore(self) -> None:
        """Let all of them run and answer again, whatever was done to them."""
        for server in (self.kafka, self.valkey, self.postgres):
            server.restore()


@asynccontextmanager
async def own_engines(*, lasting: bool) -> AsyncIterator[OwnEngines]:
    """Start a Kafka, a Valkey and a migrated PostgreSQL; they and their data end with the context.

    Args:
        lasting: as in production: PostgreSQL and Valkey write to the disk what they acknowledge, Kafka is not tuned
            for a fast start.

    Raises:
        EngineMissing: one of them is not on this machine.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(_short_folder()))
        kafka = KafkaServer(folder / "kafka", lasting=lasting)
        valkey = ValkeyServer(folder / "valkey", fsync="everysec")
        # In a folder of its own: where this is root, another user runs it.
        postgres = PostgresServer(Path(tempfile.mkdtemp(prefix="duologue-pg-")), lasting=lasting)
        stack.push_async_callback(asyncio.to_thread, postgres.remove)
        servers: list[ServerProcess] = [kafka, valkey, postgres]
        for server in servers[:2]:
            stack.push_async_callback(asyncio.to_thread, server.kill)
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
        await asyncio.to_thread(postgres.ensure_database, _DATABASE)
        await asyncio.to_thread(migrate, postgres.url(_DATABASE))
        yield OwnEngines(kafka, valkey, postgres)


def _short_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True)
