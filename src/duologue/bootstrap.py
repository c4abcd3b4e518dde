"""The composition root: the only place that knows which adapters are live, and that opens and closes each client."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args

import structlog
from fastapi import APIRouter, FastAPI
from prometheus_client import disable_created_metrics

from duologue import __version__
from duologue.ai_consumer.worker import AiConsumer
from duologue.announcement import announce
from duologue.api import accounts, characters, conversations, dead_letters, health, page
from duologue.api.access import OperatorOnly, SignedIn
from duologue.api.app import create_app
from duologue.auth.secret import checked_secret, secret_of
from duologue.auth.tokens import TokenIssuer, TokenVerifier
from duologue.config import Settings
from duologue.delivery.hub import Hub
from duologue.delivery.load import LoadBoard
from duologue.delivery.roster import Announcement, Counts, Roster
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import wall_clock
from duologue.domain.errors import DuologueError, OwnershipLost, RedisUnavailable, Retryable, StartRefused
from duologue.domain.records import INCOMING_TOPIC
from duologue.engines.data_dir import made_data_dir
from duologue.engines.redis import Redis
from duologue.engines.redis_address import shared_redis_url
from duologue.engines.valkey import bundled_valkey
from duologue.listener import bind
from duologue.llm.breaker import BreakerPolicy, CircuitBreaker
from duologue.llm.builtin import open_builtin, reach_builtin
from duologue.llm.choice import Candidate, ModelChain, Provider
from duologue.llm.fallbacks import Address, read_fallbacks
from duologue.llm.openai_compatible import OPENAI_URL, ModelTimeouts, open_openai_compatible
from duologue.llm.port import LanguageModel
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import Log
from duologue.log.valkey_streams import open_streams_log
from duologue.message_relay.worker import MessageRelay
from duologue.observability.logging import configure_logging
from duologue.open_files import raise_file_limit
from duologue.runner import Role, Runner, http_server
from duologue.store.database import Database, backend_of, open_database
from duologue.store.migrate import migrate, migrate_sql
from duologue.websocket_server import app as socket_routes
from duologue.websocket_server.load import LoadGate
from duologue.websocket_server.server import WebSocketServer
from duologue.websocket_server.transport import SocketProtocol

_log = structlog.get_logger(__name__)


RoleName = Literal["websocket-server", "ai-consumer", "message-relay", "api"]
ROLES: Final[tuple[RoleName, ...]] = get_args(RoleName)


@dataclass(frozen=True)
class Engines:
    """What every role stands on, open."""

    redis_url: str
    redis: Redis
    streams: UserStreams
    log: Log
    database: Database


@dataclass(frozen=True)
class Part:
    """What one role brings into its process."""

    name: RoleName
    role: Role | None = None
    """What runs; None for one that only answers requests."""
    checks: Mapping[str, health.Check] = field(default_factory=dict)
    """What `/ready` looks at beside the engines."""
    providers: Callable[[], Mapping[str, str]] = dict
    """The providers of models that it asks, each with the state of its circuit breaker."""
    counts: Counts = dict
    """What is shown of it beside its state."""
    stop_taking: Callable[[], None] = lambda: None
    """Called when the end begins, before anything is drained."""
    routers: Sequence[APIRouter] = ()
    root_routers: Sequence[APIRouter] = ()


async def run_embedded(settings: Settings, data_dir: Path, listener: socket.socket) -> None:
    """Run every role in this process until a signal ends it.

    Args:
        settings: of the process.
        data_dir: its folder, locked.
        listener: its address, where clients may be waiting already.

    Raises:
        StartRefused: it cannot start as it is configured.
        Permanent: a role cannot go on.
    """
    began = time.monotonic()
    _set_up_process(settings)
    async with AsyncExitStack() as stack:
        secret = _secret(settings, data_dir)
        models = await stack.enter_async_context(_open_models(settings, data_dir / "model.log"))
        engines = await stack.enter_async_context(_open_own_engines(settings, data_dir))
        parts = [
            _ai_consumer(settings, engines, models),
            _message_relay(settings, engines),
            await stack.enter_async_context(_websocket_server(settings, engines, secret)),
            _api(settings, engines, secret),
        ]
        on_ready = partial(announce, settings, listener.getsockname()[1], models, data_dir, began)
        await _runner("duologue", settings, engines, parts, listener, on_ready).run()


async def run_role(name: RoleName, settings: Settings) -> None:
    """Run one role in this process, on engines that others share, until a signal ends it.

    Raises:
        StartRefused: something is missing in the settings, or they are not valid; the message says what.
        Permanent: the role cannot go on.
    """
    secret = _shared_secret(settings)
    _set_up_process(settings)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        engines = await stack.enter_async_context(
            _open_engines(settings, shared_redis_url(settings), settings.database_url)
        )
        match name:
            case "websocket-server":
                part = await stack.enter_async_context(_websocket_server(settings, engines, secret))
            case "ai-consumer":
                part = _ai_consumer(settings, engines, await stack.enter_async_context(_open_models(settings, None)))
            case "message-relay":
                part = _message_relay(settings, engines)
            case "api":
                part = _api(settings, engines, secret)
        on_ready = partial(_log.info, "started", role=name, port=listener.getsockname()[1], version=__version__)
        await _runner(name, settings, engines, [part], listener, on_ready).run()


def migrate_database(settings: Settings, *, sql: bool) -> None:
    """Bring the database's schema up to date, or print the statements that would.

    Raises:
        StartRefused: no adapter knows the database, or the data folder cannot be used.
        StoreUnavailable: it cannot be reached.
    """
    url = settings.database_url or _database_in(made_data_dir(settings.data_dir))
    if sql:
        print(migrate_sql(url))  # noqa: T201  # this is the command's output
    else:
        migrate(url)
        print("The database is up to date.")  # noqa: T201


def _set_up_process(settings: Settings) -> None:
    configure_logging(level=settings.log_level, form=settings.log_format, server_id=settings.server_id)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # its own annotation is missing
    raise_file_limit()


# What is given, and what is missing


def _secret(settings: Settings, data_dir: Path) -> str:
    given = settings.jwt_secret.get_secret_value()
    return checked_secret(given) if given else secret_of(data_dir)


def _shared_secret(settings: Settings) -> str:
    """Return the key that all processes sign with, once it is sure that they share everything else too.

    Raises:
        StartRefused: something is missing; the message names all of it.
    """
    missing = list(_missing(settings))
    if missing:
        raise StartRefused("a role by itself needs what it shares with the others:\n  " + "\n  ".join(missing))
    return checked_secret(settings.jwt_secret.get_secret_value())


def _missing(settings: Settings) -> Iterator[str]:
    if not settings.jwt_secret.get_secret_value():
        yield "JWT_SECRET: the key that signs tokens, 32 characters or more, the same in every process"
    if not shared_redis_url(settings):
        yield "REDIS_URL (or REDIS_HOST): the Redis or Valkey of all processes"
        if not settings.kafka_bootstrap_servers:
            yield "KAFKA_BOOTSTRAP_SERVERS: the log; without it the log is Streams in that Redis"
    if not settings.database_url:
        yield "DATABASE_URL: the PostgreSQL of all processes"
    elif backend_of(settings.database_url) != "postgresql":
        yield "DATABASE_URL: a PostgreSQL; SQLite is for one process"


def _database_in(data_dir: Path) -> str:
    return f"sqlite:///{data_dir / 'duologue.db'}"


# Engines


@asynccontextmanager
async def _open_own_engines(settings: Settings, data_dir: Path) -> AsyncIterator[Engines]:
    """Open every engine, those that this process brings itself too; the slow ones take their time side by side."""
    async with AsyncExitStack() as stack:
        database_url = settings.database_url or _database_in(data_dir)
        migration = asyncio.create_task(asyncio.to_thread(migrate, database_url), name="migrate")
        try:
            redis_url = shared_redis_url(settings) or await stack.enter_async_context(bundled_valkey(data_dir))
        finally:
            await migration
        yield await stack.enter_async_context(_open_engines(settings, redis_url, database_url))


@asynccontextmanager
async def _open_engines(settings: Settings, redis_url: str, database_url: str) -> AsyncIterator[Engines]:
    """Open the engines at these addresses. A shared one may be away: what needs it waits for it."""
    shared = bool(shared_redis_url(settings))
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(_open_log(settings, redis_url))
        redis = Redis(
            redis_url,
            name="delivery",
            scripts=(*UserStreams.scripts, *Roster.scripts, *LoadBoard.scripts),
            may_be_away=shared,
        )
        await stack.enter_async_context(redis)
        database = await stack.enter_async_context(open_database(database_url, pool_size=settings.database_pool_size))
        # Of a Redis that is not the log's nobody has checked that it keeps every write (rule Epoch).
        durable = not shared or not settings.kafka_bootstrap_servers
        yield Engines(redis_url, redis, UserStreams(redis, durable=durable), log, database)


def _open_log(settings: Settings, redis_url: str) -> AbstractAsyncContextManager[Log]:
    if settings.kafka_bootstrap_servers:
        return open_kafka_log(KafkaOptions.of(settings))
    # Whoever holds the data folder holds the bundled Valkey: what its log's lock names is dead. A shared one's owner
    # may be alive.
    takeover = not shared_redis_url(settings)
    return open_streams_log(redis_url, takeover=takeover, timeout_seconds=settings.log_timeout_seconds)


@asynccontextmanager
async def _open_models(settings: Settings, builtin_log: Path | None) -> AsyncIterator[ModelChain]:
    """Open the model that is asked first and those that stand in for it, each provider once."""
    first = None
    if not settings.builtin_model:
        base_url = (settings.openai_base_url or OPENAI_URL).rstrip("/")
        first = Address(base_url, settings.openai_api_key.get_secret_value())
    fallbacks = read_fallbacks(settings.fallback_models, settings.fallback_api_keys.get_secret_value(), first)
    own_models = {each.address: each.model for each in reversed(fallbacks)} | {first: settings.openai_model}
    async with AsyncExitStack() as stack:
        opened: dict[Address | None, Provider] = {}
        for address in dict.fromkeys([first, *(each.address for each in fallbacks)]):
            opening = _open_model(settings, address, own_models[address] or "", builtin_log)
            model = await stack.enter_async_context(opening)
            opened[address] = Provider(model, _breaker(settings, model, opened.values()))
        yield ModelChain(opened[first], [Candidate(opened[each.address], each.model) for each in fallbacks])


def _breaker(settings: Settings, model: LanguageModel, others: Iterable[Provider]) -> CircuitBreaker:
    """Make the breaker of a provider. Its name is the host's, numbered if one host has several keys."""
    same = sum(other.model.provider == model.provider for other in others)
    policy = BreakerPolicy(
        failure_share=settings.model_breaker_failure_share,
        min_tries=settings.model_breaker_min_tries,
        open_seconds=settings.model_breaker_open_seconds,
    )
    return CircuitBreaker(f"{model.provider}#{same + 1}" if same else model.provider, policy)


@asynccontextmanager
async def _open_model(
    settings: Settings, address: Address | None, name: str, builtin_log: Path | None
) -> AsyncIterator[LanguageModel]:
    timeouts = ModelTimeouts(
        connect=settings.model_connect_timeout_seconds,
        first_token=settings.model_first_token_timeout_seconds,
        silence=settings.model_silence_timeout_seconds,
        whole=settings.model_total_timeout_seconds,
    )
    if address is None and settings.builtin_model_url:
        key = settings.builtin_model_key.get_secret_value()
        async with reach_builtin(settings.builtin_model_url, key=key, timeouts=timeouts) as shared:
            yield shared
        return
    if address is None:
        async with open_builtin(timeouts=timeouts, log_file=builtin_log) as builtin:
            yield builtin
        return
    async with open_openai_compatible(
        base_url=address.base_url, model=name, api_key=address.api_key, timeouts=timeouts
    ) as provider:
        yield provider


# Roles


@asynccontextmanager
async def _websocket_server(settings: Settings, engines: Engines, secret: str) -> AsyncIterator[Part]:
    async with Hub(engines.redis_url, engines.streams, may_be_away=bool(shared_redis_url(settings))) as hub:
        server = WebSocketServer(
            settings,
            producer=engines.log.producer,
            hub=hub,
            streams=engines.streams,
            database=engines.database,
            verifier=TokenVerifier(secret),
            load=LoadGate(
                LoadBoard(engines.redis),
                limit_seconds=settings.overload_seconds,
                partition_of=partial(engines.log.partition_of, INCOMING_TOPIC),
            ),
        )

        async def feed() -> None:
            if not hub.ready:
                raise RedisUnavailable("publications do not reach this process")

        async def taking() -> None:
            if server.draining:
                raise Retryable("it is draining")

        yield Part(
            server.name,
            server,
            {"feed": feed, server.name: taking},
            counts=lambda: {"connections": server.connections, "users": server.users},
            stop_taking=server.stop_taking,
            root_routers=[socket_routes.router(server)],
        )


def _ai_consumer(settings: Settings, engines: Engines, models: ModelChain) -> Part:
    consumer = AiConsumer(
        log=engines.log,
        database=engines.database,
        streams=engines.streams,
        board=LoadBoard(engines.redis),
        models=models,
        settings=settings,
    )
    first, *others = models.providers
    checks: dict[str, health.Check] = {"model": partial(_provider_state, first)}
    checks |= {f"model {provider.name}": partial(_provider_state, provider) for provider in others}
    checks[consumer.name] = partial(_owner, consumer)
    return Part(
        consumer.name,
        consumer,
        checks,
        counts=lambda: {"pending": consumer.pending, "open_breakers": models.open_breakers},
        providers=lambda: {provider.name: provider.breaker.state for provider in models.providers},
    )


def _message_relay(settings: Settings, engines: Engines) -> Part:
    relay = MessageRelay(log=engines.log, database=engines.database, streams=engines.streams, settings=settings)
    checks = {relay.name: partial(_owner, relay)}
    return Part(relay.name, relay, checks, counts=lambda: {"pending": relay.pending})


def _api(settings: Settings, engines: Engines, secret: str) -> Part:
    database, verifier = engines.database, TokenVerifier(secret)
    signed_in = SignedIn(database, verifier, wall_clock)
    tokens = accounts.router(
        settings=settings,
        database=database,
        streams=engines.streams,
        issuer=TokenIssuer(secret),
        verifier=verifier,
    )
    letters = dead_letters.router(database, engines.log.producer, OperatorOnly(database, verifier))
    return Part(
        "api",
        routers=[tokens, characters.router(database, signed_in), conversations.router(database, signed_in), letters],
        root_routers=[characters.open_router(database, signed_in), page.router()],
    )


# The process


def _runner(
    service: str,
    settings: Settings,
    engines: Engines,
    parts: Sequence[Part],
    listener: socket.socket,
    on_ready: Callable[[], None],
) -> Runner:
    """Compose a process of these parts: what it runs, what it serves, and what the others hear of it."""
    checks = _checks(engines, parts)
    announcement = Announcement(
        engines.redis,
        server_id=settings.server_id,
        roles={part.name: part.counts for part in parts},
        failing=partial(health.failing, checks),
    )

    def on_drain() -> None:
        announcement.begin_drain()
        for part in parts:
            part.stop_taking()

    return Runner(
        roles=[*(part.role for part in parts if part.role is not None), announcement],
        server=http_server(_app(service, settings, engines, parts, checks), settings, SocketProtocol),
        listener=listener,
        drain_seconds=settings.drain_seconds,
        on_ready=on_ready,
        on_drain=on_drain,
    )


def _checks(engines: Engines, parts: Sequence[Part]) -> Mapping[str, health.Check]:
    checks: dict[str, health.Check] = {
        "store": engines.database.check,
        "redis": partial(_redis_answers, engines.redis),
        "log": engines.log.check,
    }
    for part in parts:
        checks |= part.checks
    return checks


def _app(
    service: str,
    settings: Settings,
    engines: Engines,
    parts: Sequence[Part],
    checks: Mapping[str, health.Check],
) -> FastAPI:
    """Compose what a process serves: its parts', and the operations that every process has."""
    sees_all = any(part.name == "api" for part in parts)
    operations = health.router(
        service=service,
        server_id=settings.server_id,
        checks=checks,
        connections=lambda: {
            name: count for part in parts if part.name == "websocket-server" for name, count in part.counts().items()
        },
        providers=lambda: {name: state for part in parts for name, state in part.providers().items()},
        roll=Roster(engines.redis).present if sees_all else None,
        needed=ROLES,
    )
    return create_app(
        title=settings.app_name,
        routers=[*(router for part in parts for router in part.routers), operations],
        root_routers=[router for part in parts for router in part.root_routers],
    )


# What `/ready` looks at


async def _redis_answers(redis: Redis) -> None:
    await redis.call("PING")


async def _owner(role: AiConsumer | MessageRelay) -> None:
    if not role.assigned:
        raise OwnershipLost("it does not own its part of the log")


async def _provider_state(provider: Provider) -> str | None:
    """Return what is wrong with a provider, None for nothing; also if it is for the operator to mend.

    It never makes the process not ready: messages are taken, and wait or are answered by another model.
    """
    try:
        await provider.model.check()
    except DuologueError as error:
        return str(error)
    state = provider.breaker.state
    return None if state == "closed" else f"its circuit breaker is {state.replace('_', ' ')}"
