"""The composition root: the only place that knows which adapters are live, and that opens and closes each client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from duologue import __version__
from duologue.ai_consumer.worker import AiConsumer
from duologue.api import accounts, characters, conversations, health, page
from duologue.api.access import SignedIn
from duologue.api.app import create_app
from duologue.auth.secret import checked_secret, secret_of
from duologue.auth.tokens import TokenIssuer, TokenVerifier
from duologue.config import Settings
from duologue.delivery.hub import Hub
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import wall_clock
from duologue.domain.errors import DuologueError, OwnershipLost, RedisUnavailable, Retryable
from duologue.engines.data_dir import locked_data_dir, made_data_dir
from duologue.engines.redis import Redis
from duologue.engines.valkey import bundled_valkey
from duologue.llm.builtin import open_builtin
from duologue.llm.openai_compatible import ModelTimeouts, open_openai_compatible
from duologue.llm.port import LanguageModel
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import Log
from duologue.log.valkey_streams import open_streams_log
from duologue.message_relay.worker import MessageRelay
from duologue.observability.logging import configure_logging
from duologue.runner import Runner, bind, http_server, raise_file_limit
from duologue.store.database import Database, open_database
from duologue.store.migrate import migrate, migrate_sql
from duologue.websocket_server import app as sockets
from duologue.websocket_server.server import WebSocketServer
from duologue.websocket_server.transport import SocketProtocol

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Engines:
    """What every role stands on, open."""

    redis_url: str
    redis: Redis
    streams: UserStreams
    log: Log
    database: Database
    model: LanguageModel


@dataclass(frozen=True)
class Roles:
    """Every role of the embedded mode."""

    consumer: AiConsumer
    relay: MessageRelay
    sockets: WebSocketServer


async def run_embedded(settings: Settings) -> None:
    """Run every role in this process until a signal ends it.

    Raises:
        StartRefused: it cannot start as it is configured, or it runs already on this data folder.
        Permanent: a role cannot go on.
    """
    began = time.monotonic()
    configure_logging(level=settings.log_level, form=settings.log_format, server_id=settings.server_id)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # its own annotation is missing
    raise_file_limit()
    async with AsyncExitStack() as stack:
        data_dir = stack.enter_context(locked_data_dir(settings.data_dir))
        listener = stack.enter_context(bind(settings.host, settings.port))
        secret = _secret(settings, data_dir)
        engines = await stack.enter_async_context(_open_engines(settings, data_dir))
        hub = await stack.enter_async_context(Hub(engines.redis_url, engines.streams))
        roles = _roles(settings, engines, hub, secret)
        runner = Runner(
            roles=[roles.consumer, roles.relay, roles.sockets],
            server=http_server(_embedded_app(settings, engines, roles, secret), settings, SocketProtocol),
            listener=listener,
            drain_seconds=settings.drain_seconds,
            on_ready=partial(_announce, settings, listener.getsockname()[1], engines, data_dir, began),
            on_drain=roles.sockets.stop_taking,
        )
        await runner.run()


def migrate_database(settings: Settings, *, sql: bool) -> None:
    """Bring the database's schema up to date, or print the statements that would.

    Raises:
        StartRefused: no adapter knows the database, or the data folder cannot be used.
        StoreUnavailable: it cannot be reached.
    """
    url = _database_url(settings, made_data_dir(settings.data_dir))
    if sql:
        print(migrate_sql(url))  # noqa: T201  # this is the command's output
    else:
        migrate(url)
        print("The database is up to date.")  # noqa: T201


def _secret(settings: Settings, data_dir: Path) -> str:
    given = settings.jwt_secret.get_secret_value()
    return checked_secret(given) if given else secret_of(data_dir)


@asynccontextmanager
async def _open_engines(settings: Settings, data_dir: Path) -> AsyncIterator[Engines]:
    """Open every engine; those that start take their time side by side."""
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(_open_model(settings, data_dir))
        database_url = _database_url(settings, data_dir)
        migration = asyncio.create_task(asyncio.to_thread(migrate, database_url), name="migrate")
        try:
            shared_url = _redis_url(settings)
            redis_url = shared_url or await stack.enter_async_context(bundled_valkey(data_dir))
            log = await stack.enter_async_context(_open_log(settings, redis_url))
            redis = await stack.enter_async_context(Redis(redis_url, name="delivery", scripts=UserStreams.scripts))
        finally:
            await migration
        database = await stack.enter_async_context(open_database(database_url, pool_size=settings.database_pool_size))
        # Of a Redis that is not the log's nobody has checked that it keeps every write (rule Epoch).
        durable = not shared_url or not settings.kafka_bootstrap_servers
        yield Engines(redis_url, redis, UserStreams(redis, durable=durable), log, database, model)


def _open_log(settings: Settings, redis_url: str) -> AbstractAsyncContextManager[Log]:
    if settings.kafka_bootstrap_servers:
        return open_kafka_log(KafkaOptions.of(settings))
    # Whoever holds the data folder holds the bundled Valkey: what its log's lock names is dead. A shared one's owner
    # may be alive.
    takeover = not _redis_url(settings)
    return open_streams_log(redis_url, takeover=takeover, timeout_seconds=settings.log_timeout_seconds)


def _redis_url(settings: Settings) -> str:
    if settings.redis_url or not settings.redis_host:
        return settings.redis_url
    return f"redis://{settings.redis_host}:{settings.redis_port}"


def _database_url(settings: Settings, data_dir: Path) -> str:
    return settings.database_url or f"sqlite:///{data_dir / 'duologue.db'}"


@asynccontextmanager
async def _open_model(settings: Settings, data_dir: Path) -> AsyncIterator[LanguageModel]:
    timeouts = ModelTimeouts(
        connect=settings.model_connect_timeout_seconds,
        first_token=settings.model_first_token_timeout_seconds,
        silence=settings.model_silence_timeout_seconds,
        whole=settings.model_total_timeout_seconds,
    )
    if settings.builtin_model:
        async with open_builtin(timeouts=timeouts, log_file=data_dir / "model.log") as builtin:
            yield builtin
        return
    async with open_openai_compatible(
        base_url=settings.openai_base_url,
        model=settings.openai_model,
        api_key=settings.openai_api_key.get_secret_value(),
        timeouts=timeouts,
    ) as provider:
        yield provider


def _roles(settings: Settings, engines: Engines, hub: Hub, secret: str) -> Roles:
    consumer = AiConsumer(
        log=engines.log,
        database=engines.database,
        streams=engines.streams,
        model=engines.model,
        settings=settings,
    )
    relay = MessageRelay(log=engines.log, database=engines.database, streams=engines.streams, settings=settings)
    server = WebSocketServer(
        settings,
        producer=engines.log.producer,
        hub=hub,
        streams=engines.streams,
        database=engines.database,
        verifier=TokenVerifier(secret),
    )
    return Roles(consumer, relay, server)


def _embedded_app(settings: Settings, engines: Engines, roles: Roles, secret: str) -> FastAPI:
    database, verifier = engines.database, TokenVerifier(secret)
    signed_in = SignedIn(database, verifier, wall_clock)
    tokens = accounts.router(
        settings=settings,
        database=database,
        streams=engines.streams,
        issuer=TokenIssuer(secret),
        verifier=verifier,
    )
    operations = health.router(
        service="duologue",
        server_id=settings.server_id,
        checks=_checks(engines, roles),
        connections=lambda: {"connections": roles.sockets.connections, "users": roles.sockets.users},
    )
    return create_app(
        title=settings.app_name,
        routers=[
            tokens,
            characters.router(database, signed_in),
            conversations.router(database, signed_in),
            operations,
        ],
        root_routers=[
            sockets.router(roles.sockets),
            characters.open_router(database, signed_in),
            page.router(),
        ],
    )


def _checks(engines: Engines, roles: Roles) -> dict[str, Callable[[], Awaitable[str | None]]]:
    """Return how `/ready` looks at each part. A model that loads or fails holds nothing up: messages are taken."""

    async def redis() -> None:
        await engines.redis.call("PING")

    async def feed() -> None:
        if not roles.sockets.hub.ready:
            raise RedisUnavailable("publications do not reach this process")

    async def websocket_server() -> None:
        if roles.sockets.draining:
            raise Retryable("it is draining")

    async def owner(role: AiConsumer | MessageRelay) -> None:
        if not role.assigned:
            raise OwnershipLost("it does not own its part of the log")

    return {
        "store": engines.database.check,
        "redis": redis,
        "log": engines.log.check,
        "model": partial(_model_state, engines.model),
        "feed": feed,
        "websocket-server": websocket_server,
        roles.consumer.name: partial(owner, roles.consumer),
        roles.relay.name: partial(owner, roles.relay),
    }


async def _model_state(model: LanguageModel) -> str | None:
    """Return what is wrong with the model, None for nothing; also if it is for the operator to mend."""
    try:
        await model.check()
    except DuologueError as error:
        return str(error)
    return None


def _announce(settings: Settings, port: int, engines: Engines, data_dir: Path, began: float) -> None:
    """Tell people what runs, with which model, and where to open it."""
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104  # compared, not bound
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    model = "built in" if settings.builtin_model else settings.openai_base_url or "OpenAI"
    redis = "bundled Valkey" if not _redis_url(settings) else "Redis"
    log = f"Kafka (log), {redis} (delivery)" if settings.kafka_bootstrap_servers else f"{redis} (log and delivery)"
    store = settings.database_url.partition(":")[0] or "SQLite"
    lines = [
        f"{settings.app_name} {__version__} is ready after {time.monotonic() - began:.1f} s.",
        f"  Open      {url}",
        f"  Model     {engines.model.name} ({model}), {settings.workers} replies at once",
        f"  Runs on   {log}, {store} (store); data in {data_dir}",
        f"  Terminal  duologue chat{'' if port == 8080 else f' --url {url}'}",
        "  Ctrl-C finishes what was accepted and stops; a second one stops at once.",
    ]
    print("\n".join(lines), flush=True)  # noqa: T201  # for people, not for the log
    _log.info("ready", url=url, model=engines.model.name, seconds=round(time.monotonic() - began, 2))
