"""What the cluster on one machine consists of: each program with its command, environment and readiness."""

from __future__ import annotations

import http.client
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from duologue.auth.secret import checked_secret
from duologue.cluster.kafka import KafkaPorts, KafkaServer
from duologue.cluster.local_env import LocalEnv
from duologue.cluster.local_secrets import LocalSecrets
from duologue.cluster.nginx import NginxServer
from duologue.cluster.postgres import PostgresServer
from duologue.cluster.postgres_home import make_postgres_home, postgres_home
from duologue.cluster.server_process import EngineMissing, ServerProcess
from duologue.cluster.supervisor import Supervised
from duologue.cluster.valkey import ValkeyServer
from duologue.config import BUILTIN_WORKERS, Settings
from duologue.llm.builtin_server import KEY_VARIABLE

DATABASE: Final = "duologue"
START_ORDER: Final = (
    ("postgres", "kafka", "valkey"),
    ("model", "message-relay", "ai-consumer", "api", "websocket-server"),
    ("nginx",),
)
"""Kinds of programs: those of one turn start side by side."""

STOP_ORDER: Final = (
    ("ai-consumer",),  # it finishes what it has taken; the rest delivers that
    ("message-relay",),
    ("websocket-server", "api"),
    ("model",),
    ("nginx",),
    ("kafka", "valkey", "postgres"),
)

_ROLE_START_SECONDS: Final = 180.0
_MODEL_START_SECONDS: Final = 120.0
_MODEL_STOP_SECONDS: Final = 5.0
_AFTER_DRAIN_SECONDS: Final = 15.0
"""What a role may take beyond its drain until it has ended."""

_PROBE_SECONDS: Final = 3.0
_OWN: Final = frozenset({"HOST", "PORT", "SERVER_ID", "DATA_DIR"})
"""Settings that each process has to have for itself."""

_POSTGRES_CONNECTIONS: Final = 300
"""Each role's process takes up to DATABASE_POOL_SIZE."""

_END_ORPHANS: Final = (
    'old=$(cat nginx/nginx.pid 2>/dev/null) && ! kill -0 "$old" 2>/dev/null && kill -s KILL -- "-$old" 2>/dev/null'
)
"""The workers of a master that was killed live on and hold its ports; they are in its process group."""

_LOOPBACK: Final = "127.0.0.1"


class Group(StrEnum):
    """What is started together."""

    DEPENDENCIES = "dependencies"
    BACKEND = "backend"


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program of the cluster.

    Attributes:
        ports: on which it listens.
        start_seconds: how long it may take until it answers.
        prepare: makes what it needs in its folder; called before each start.
        answers: tells whether it does its work.
        renew: writes its configuration while it runs and tells whether it has to be told by SIGHUP.
    """

    group: Group
    supervised: Supervised
    host: str = _LOOPBACK
    ports: Sequence[int]
    start_seconds: float
    prepare: Callable[[], None]
    answers: Callable[[], bool]
    renew: Callable[[], bool] = lambda: False

    @property
    def name(self) -> str:
        return self.supervised.name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole cluster. `postgres` is None if it is not the cluster's own."""

    programs: Sequence[Program]
    postgres: PostgresServer | None
    role_environment: Mapping[str, str]

    def of(self, *groups: Group) -> list[Program]:
        """Return the programs of these groups."""
        return [program for program in self.programs if program.group in groups]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a cluster is and what it is given.

    Attributes:
        root: the repository, in which roles start and find `.env`.
        folder: the cluster's, absolute.
        env: ports and numbers.
        settings: of the roles.
        secrets: the cluster's.
        environment: whose settings are passed on to the roles.
    """

    root: Path
    folder: Path
    env: LocalEnv
    settings: Settings
    secrets: LocalSecrets
    environment: Mapping[str, str]


def kind_of(name: str) -> str:
    """Return what a program is, without its number: `websocket-server` of `websocket-server-2`."""
    return re.sub(r"-\d+$", "", name)


def plan(site: Site) -> Plan:
    """Return what is to run. An engine that the settings name is used, and none of the cluster's own started for it.

    Raises:
        EngineMissing: programs are not on this machine; the message names all of them.
        StartRefused: JWT_SECRET is too short.
    """
    missing: list[str] = []
    settings = site.settings
    postgres = None if settings.database_url else _had(_postgres, site, missing)
    kafka = None if settings.kafka_bootstrap_servers else _had(_kafka, site, missing)
    valkey = None if settings.redis_url or settings.redis_host else _had(_valkey, site, missing)
    nginx = _had(_nginx, site, missing)
    if missing or nginx is None:
        raise EngineMissing("\n".join(missing))
    environment = _role_environment(site, postgres, kafka, valkey)
    engines = {"postgres": postgres, "kafka": kafka, "valkey": valkey}
    programs = [_of_server(name, each, _ports(site.env, name)) for name, each in engines.items() if each is not None]
    programs += [_model(site)] if _serves_model(settings) else []
    programs += _roles(site, environment)
    programs.append(_of_nginx(nginx))
    return Plan(programs=programs, postgres=postgres, role_environment=environment)


_Server = TypeVar("_Server", bound=ServerProcess)


def _had(make: Callable[[Site], _Server], site: Site, missing: list[str]) -> _Server | None:
    """Make a server and look for its program; what is not there is added to `missing`."""
    try:
        server = make(site)
        _ = server.command
    except EngineMissing as error:
        missing.append(str(error))
        return None
    return server


class _HousedPostgres(PostgresServer):
    def prepare(self) -> None:
        make_postgres_home(self.folder)
        super().prepare()


def _postgres(site: Site) -> PostgresServer:
    return _HousedPostgres(
        postgres_home(site.folder),
        port=site.env.postgres_port,
        password=site.secrets.postgres_password,
        lasting=True,
        settings={"max_connections": str(_POSTGRES_CONNECTIONS)},
    )


def _kafka(site: Site) -> KafkaServer:
    ports = KafkaPorts(site.env.kafka_port, site.env.kafka_controller_port)
    return KafkaServer(site.folder / "kafka", ports=ports, lasting=True)


def _valkey(site: Site) -> ValkeyServer:
    # Delivery may lose what its last second wrote: a message and its reply are in the log and in the store.
    return ValkeyServer(
        site.folder / "valkey", port=site.env.valkey_port, password=site.secrets.redis_password, fsync="everysec"
    )


def _nginx(site: Site) -> NginxServer:
    env = site.env
    return NginxServer(
        site.folder / "nginx",
        host=env.nginx_host,
        ports=[env.nginx_port, env.nginx_gateway_port, env.nginx_chat_port],
        websocket_servers=[
            f"{_LOOPBACK}:{env.websocket_server_port + index}" for index in range(env.websocket_servers)
        ],
        api_servers=[f"{_LOOPBACK}:{env.api_port + index}" for index in range(env.apis)],
        trusted_proxies=site.settings.trusted_proxies,
    )


def _of_nginx(server: NginxServer) -> Program:
    program = _of_server("nginx", server, server.ports)
    supervised = replace(program.supervised, before=_END_ORPHANS, read="")  # which it reads again when told to
    return replace(
        program, group=Group.BACKEND, host=server.host, supervised=supervised, renew=partial(_renew_nginx, server)
    )


def _renew_nginx(server: NginxServer) -> bool:
    before = _configuration(server)
    server.prepare()
    if _configuration(server) == before:
        return False
    server.check()
    return True


def _configuration(server: NginxServer) -> dict[Path, str]:
    return {path: path.read_text() for path in server.folder.rglob("*.conf")}


def _of_server(name: str, server: ServerProcess, ports: Sequence[int]) -> Program:
    return Program(
        group=Group.DEPENDENCIES,
        supervised=Supervised(
            name=name,
            command=server.command,
            folder=server.folder,
            user=server.user,
            stop_signal=server.stop_signal,
            stop_seconds=server.stop_seconds,
            stop_turn=_stop_turn(name),
            death_signal=server.death_signal,
            read=str(ports),
        ),
        ports=ports,
        start_seconds=server.start_seconds,
        prepare=server.prepare,
        answers=server.answers,
    )


def _ports(env: LocalEnv, name: str) -> Sequence[int]:
    every = {
        "postgres": [env.postgres_port],
        "kafka": [env.kafka_port, env.kafka_controller_port],
        "valkey": [env.valkey_port],
    }
    return every[name]


def _model(site: Site) -> Program:
    port = site.env.model_port
    command = [sys.executable, "-m", "duologue.llm.builtin_server", "--host", _LOOPBACK, "--port", str(port)]
    return Program(
        group=Group.BACKEND,
        supervised=Supervised(
            name="model",
            command=command,
            environment={KEY_VARIABLE: site.secrets.model_key},
            folder=site.root,
            stop_seconds=_MODEL_STOP_SECONDS,
            stop_turn=_stop_turn("model"),
        ),
        ports=[port],
        start_seconds=_MODEL_START_SECONDS,
        prepare=_nothing,
        answers=partial(answers_ok, port, "/health"),
    )


def _roles(site: Site, environment: Mapping[str, str]) -> Iterator[Program]:
    env = site.env
    for kind, count, first_port in (
        ("message-relay", env.message_relays, env.message_relay_port),
        ("ai-consumer", env.ai_consumers, env.ai_consumer_port),
        ("api", env.apis, env.api_port),
        ("websocket-server", env.websocket_servers, env.websocket_server_port),
    ):
        for index in range(count):
            yield _role(site, kind, f"{kind}-{index + 1}", first_port + index, environment)


def _role(site: Site, kind: str, name: str, port: int, environment: Mapping[str, str]) -> Program:
    own = {"HOST": _LOOPBACK, "PORT": str(port), "SERVER_ID": name}
    return Program(
        group=Group.BACKEND,
        supervised=Supervised(
            name=name,
            command=[sys.executable, "-m", "duologue.cli", kind],
            environment={**environment, **own},
            folder=site.root,
            stop_seconds=site.settings.drain_seconds + _AFTER_DRAIN_SECONDS,
            stop_turn=_stop_turn(name),
        ),
        ports=[port],
        start_seconds=_ROLE_START_SECONDS,
        prepare=_nothing,
        answers=partial(answers_ok, port, "/ready"),
    )


def _role_environment(
    site: Site, postgres: PostgresServer | None, kafka: KafkaServer | None, valkey: ValkeyServer | None
) -> dict[str, str]:
    """Return the settings that all roles share. What stands in `.env` they read by themselves."""
    environment = {
        name: value
        for name, value in site.environment.items()
        if name.lower() in Settings.model_fields and name not in _OWN
    }
    environment["JWT_SECRET"] = checked_secret(site.settings.jwt_secret.get_secret_value() or site.secrets.jwt_secret)
    environment["TRUSTED_PROXIES"] = _LOOPBACK  # nginx, which has looked at the operator's own
    if postgres is not None:
        environment["DATABASE_URL"] = postgres.url(DATABASE)
    if kafka is not None:
        environment["KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap_servers
    if valkey is not None:
        environment["REDIS_URL"] = valkey.url
    if _serves_model(site.settings):
        environment["BUILTIN_MODEL_URL"] = f"http://{_LOOPBACK}:{site.env.model_port}"
        environment["BUILTIN_MODEL_KEY"] = site.secrets.model_key
        if site.settings.builtin_model:  # it answers so many at once, whoever asks
            share = max(1, BUILTIN_WORKERS // site.env.ai_consumers)
            environment["MAX_WORKERS"] = str(site.settings.max_workers or share)
    return environment


def _serves_model(settings: Settings) -> bool:
    return settings.asks_builtin_model and not settings.builtin_model_url


def _stop_turn(name: str) -> int:
    return next(turn for turn, kinds in enumerate(STOP_ORDER) if kind_of(name) in kinds)


def _nothing() -> None:
    """Nothing is to be prepared."""


def answers_ok(port: int, path: str) -> bool:
    """Tell whether a process answers 200 to GET `path` on a port of 127.0.0.1."""
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
