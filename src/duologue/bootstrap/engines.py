"""The engines behind the ports: which of them, and those that a process brings itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from duologue.config import Settings
from duologue.delivery.load import LoadBoard
from duologue.delivery.roster import Roster
from duologue.delivery.stream import UserStreams
from duologue.engines.redis import Redis
from duologue.engines.redis_address import shared_redis_url
from duologue.engines.valkey import bundled_valkey
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import Log
from duologue.log.valkey_streams import open_streams_log
from duologue.store.database import Database, open_database
from duologue.store.migrate import migrate


@dataclass(frozen=True)
class Engines:
    """What every role stands on, open."""

    redis_url: str
    redis: Redis
    streams: UserStreams
    log: Log
    database: Database


def database_in(data_dir: Path) -> str:
    """Return the URL of the database that a process has in its data folder."""
    return f"sqlite:///{data_dir / 'duologue.db'}"


@asynccontextmanager
async def open_own_engines(settings: Settings, data_dir: Path) -> AsyncIterator[Engines]:
    """Open every engine, those that this process brings itself too; the slow ones take their time side by side."""
    async with AsyncExitStack() as stack:
        database_url = settings.database_url or database_in(data_dir)
        migration = asyncio.create_task(asyncio.to_thread(migrate, database_url), name="migrate")
        try:
            redis_url = shared_redis_url(settings) or await stack.enter_async_context(bundled_valkey(data_dir))
        finally:
            await migration
        yield await stack.enter_async_context(open_engines(settings, redis_url, database_url))


@asynccontextmanager
async def open_engines(settings: Settings, redis_url: str, database_url: str) -> AsyncIterator[Engines]:
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
