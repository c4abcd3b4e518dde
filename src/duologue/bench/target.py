"""What is measured: a system of its own with a model server beside it, or one that runs already."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from duologue.bench.distributed import DistributedSystem, RoleName, SharedEngines, distributed_system, own_engines
from duologue.bench.hops import UNIX_SOCKET, Hop, RedisServer, TcpPorts
from duologue.bench.load.crowd import Entrance
from duologue.bench.load.recorder import ModelTimes
from duologue.bench.model_server import ModelServer, own_model
from duologue.bench.options import Where
from duologue.bench.process import free_port
from duologue.bench.system import System, embedded_system
from duologue.cluster.server_process import ServerProcess
from duologue.domain.errors import StartRefused

_NO_LIMITS: Final = {
    "USER_RATE_LIMIT_MAX_REQUESTS": "1000000",
    "TOKEN_RATE_LIMIT_MAX_REQUESTS": "1000000",
    "LOG_LEVEL": "INFO",
}


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario needs. `model`: settings of the model server; `settings`: of a system of its own; `own`: whether
    it must be one."""

    model: Mapping[str, Any] = {}
    settings: Mapping[str, str] = {}
    own: bool = False


class Target:
    """A system that is ready to be loaded.

    Args:
        mode: `running` if it is not one of ours.
        entrance: for its users.
        model: its model server; None if that is not known.
        hops: the servers between which bytes are counted.
        system: its processes, if they are ours; `engines` and `database_url` too.
    """

    def __init__(
        self,
        mode: Literal["embedded", "distributed", "running"],
        entrance: Entrance,
        model: ModelServer | None,
        *,
        hops: Mapping[str, Hop],
        system: System | None = None,
        engines: Mapping[str, ServerProcess] | None = None,
        database_url: str = "",
    ) -> None:
        self.mode = mode
        self.entrance = entrance
        self.model = model
        self.hops = hops if model is None else {**hops, "model": TcpPorts(frozenset([_port(model.url)]))}
        self.database_url = database_url
        self._system = system
        self._engines = engines or {}

    @property
    def system(self) -> System:
        """The processes. Raises StartRefused if they are not ours."""
        if self._system is None:
            raise StartRefused("this needs a system of its own: leave out --url")
        return self._system

    @property
    def is_own(self) -> bool:
        """Whether its processes are ours, so that their CPU and memory can be read."""
        return self._system is not None

    @property
    def model_times(self) -> ModelTimes:
        """What the model takes by itself, as far as that is known."""
        return self.model.times() if self.model is not None else ModelTimes()

    def pids(self) -> dict[str, list[int]]:
        """Return the process ids by role, or program, and engine, without their children; none if they are not ours."""
        if self._system is None:
            return {}
        found: dict[str, list[int]] = {}
        for name, pid in self._system.pids().items():
            found.setdefault(name.rstrip("-0123456789"), []).append(pid)
        for name, engine in self._engines.items():
            found[name] = [engine.pid]
        if self.model is not None and self.model.pid is not None:
            found["model"] = [self.model.pid]
        return found

    def direct(self) -> Entrance:
        """Return the entrance past nginx: sockets are on the first websocket-server. Raises StartRefused."""
        system = self.system
        server = system.server("websocket-server-1")
        return Entrance(self.entrance.url, server.ws_url, system.jwt_secret)

    @property
    def socket_holders(self) -> str:
        """The role that holds clients' sockets."""
        return "websocket-server" if self.mode == "distributed" else "duologue"


@asynccontextmanager
async def open_target(where: Where, needs: Needs) -> AsyncIterator[Target]:
    """Start a system as a scenario needs it, or look at a running one; what was started ends with the context.

    Raises:
        StartRefused: it cannot be started or must not be loaded; the message says why.
    """
    if where.url:
        if needs.own:
            raise StartRefused("this scenario needs a system of its own: leave out --url")
        async with _running(where, needs) as target:
            yield target
        return
    with tempfile.TemporaryDirectory(prefix="duologue-bench-", ignore_cleanup_errors=True) as folder:
        async with own_model(free_port()) as model:
            await model.configure(needs.model)
            settings = {"OPENAI_BASE_URL": f"{model.url}/v1", **_NO_LIMITS, **needs.settings}
            start = _embedded if where.mode == "embedded" else _distributed
            async with start(where, Path(folder), model, settings) as target:
                yield target


@asynccontextmanager
async def _embedded(_: Where, folder: Path, model: ModelServer, settings: Mapping[str, str]) -> AsyncIterator[Target]:
    async with embedded_system(folder / "data", settings) as system:
        entrance = Entrance(system.url, system.ws_url, system.jwt_secret)
        database_url = f"sqlite:///{system.data_dir / 'duologue.db'}"
        valkey = RedisServer(f"unix://{system.data_dir / 'valkey' / 'valkey.sock'}")
        hops: dict[str, Hop] = {"duologue": TcpPorts(frozenset([system.port])), "valkey": valkey}
        yield Target("embedded", entrance, model, hops=hops, system=system, database_url=database_url)


@asynccontextmanager
async def _distributed(
    where: Where, folder: Path, model: ModelServer, settings: Mapping[str, str]
) -> AsyncIterator[Target]:
    processes: dict[RoleName, int] = {
        "websocket-server": where.websocket_servers,
        "ai-consumer": where.ai_consumers,
        "message-relay": where.message_relays,
        "api": where.apis,
    }
    async with own_engines(lasting=True) as own:
        shared = own.shared()
        async with distributed_system(folder, shared, settings, processes) as system:
            engines = {"kafka": own.kafka, "valkey": own.valkey, "postgresql": own.postgres, "nginx": system.nginx}
            entrance = Entrance(system.url, system.ws_url, system.jwt_secret)
            yield Target(
                "distributed",
                entrance,
                model,
                hops=_distributed_hops(system, shared),
                system=system,
                engines=engines,
                database_url=shared.database_url,
            )


def _distributed_hops(system: DistributedSystem, engines: SharedEngines) -> dict[str, Hop]:
    roles: tuple[RoleName, ...] = ("websocket-server", "api")
    hops: dict[str, Hop] = {role: TcpPorts(frozenset(process.port for process in system.of(role))) for role in roles}
    return hops | {
        "nginx": TcpPorts(frozenset([_port(system.url)])),
        "kafka": TcpPorts(frozenset([_port(f"kafka://{engines.kafka_bootstrap_servers}")])),
        "valkey": RedisServer(engines.redis_url),
        "postgresql": UNIX_SOCKET,
    }


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


@asynccontextmanager
async def _running(where: Where, needs: Needs) -> AsyncIterator[Target]:
    entrance = entrance_of(where, os.environ)
    hops = {"duologue": TcpPorts(frozenset([_port(where.url)]))}
    if not where.model_url:
        yield Target("running", entrance, None, hops=hops)
        return
    refuse_strangers(where.model_url, where.i_own_this_system, "--model-url")
    model = ModelServer(where.model_url.rstrip("/").removesuffix("/v1"))
    before = await model.configure(needs.model)
    try:
        yield Target("running", entrance, model, hops=hops)
    finally:
        await model.set_back(before)


def entrance_of(where: Where, environment: Mapping[str, str]) -> Entrance:
    """Return the entrance of a running system. Raises StartRefused."""
    refuse_strangers(where.url, where.i_own_this_system, "--url")
    secret = where.jwt_secret or environment.get("JWT_SECRET", "")
    if not secret:
        raise StartRefused(
            "--url needs --jwt-secret, or JWT_SECRET in the environment: users' tokens are signed with it"
        )
    url = where.url.rstrip("/")
    return Entrance(url, "ws" + url.removeprefix("http"), secret)


def refuse_strangers(url: str, owned: bool, option: str) -> None:
    """Raise StartRefused unless a URL is one of this machine, or its owner asks."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartRefused(f"{option} {url}: it begins with http:// or https://")
    if not owned and not _is_loopback(parts.hostname):
        raise StartRefused(
            f"{option} {url} is not on this machine. Load that nobody has agreed to is an attack: "
            "if the system is yours, say --i-own-this-system"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
