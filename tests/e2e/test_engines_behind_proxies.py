"""Engines that are reached, but badly: a subscription that delivers nothing more, and answers that take their time."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest_asyncio
from tests.support.crowd import Crowd, crowd
from tests.support.model_server import ModelServer
from tests.support.proxied_kafka import ProxiedKafka
from tests.support.standing import Standing
from tests.support.tcp_proxy import TcpProxy

from duologue.bench.distributed import (
    DistributedSystem,
    OwnEngines,
    SharedEngines,
    distributed_system,
)
from duologue.bench.process import DuologueProcess, status_of

_USERS = 12
_DELAY_SECONDS = 0.2
"""In each direction. A batch takes some ten round trips to the database."""


@dataclass(frozen=True)
class Proxied:
    """A distributed system, and what stands between it and its engines."""

    system: DistributedSystem
    redis: TcpProxy
    postgres: TcpProxy
    kafka: TcpProxy
    model: TcpProxy


@asynccontextmanager
async def _proxied(engines: OwnEngines, kafka: ProxiedKafka, model_server: ModelServer) -> AsyncIterator[Proxied]:
    async with AsyncExitStack() as stack:
        socket = f"{engines.postgres.folder}/.s.PGSQL.5432"
        postgres = await stack.enter_async_context(TcpProxy(socket).listening())
        redis = await stack.enter_async_context(TcpProxy(engines.valkey.url.removeprefix("unix://")).listening())
        model_port = int(model_server.root.rpartition(":")[2])
        model = await stack.enter_async_context(TcpProxy(("127.0.0.1", model_port)).listening())
        in_front_of_kafka = await stack.enter_async_context(kafka.proxy())
        database = engines.postgres.create_database("template")
        stack.callback(engines.postgres.drop_database, database)
        user = engines.postgres.url(database).partition("@")[0]
        shared = SharedEngines(
            kafka.proxied_bootstrap_servers,
            f"redis://127.0.0.1:{redis.port}/0",
            f"{user}@127.0.0.1:{postgres.port}/{database}",
            f"{uuid.uuid4()}-",
        )
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True))
        environment = {
            "KAFKA_PARTITIONS": "6",
            "DATABASE_POOL_SIZE": "5",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{model.port}/v1",
            "MODEL_FIRST_TOKEN_TIMEOUT_SECONDS": "2",
            "MODEL_SILENCE_TIMEOUT_SECONDS": "2",
            "USER_RATE_LIMIT_MAX_REQUESTS": "10000",
            "TOKEN_RATE_LIMIT_MAX_REQUESTS": "10000",
        }
        system = await stack.enter_async_context(distributed_system(Path(folder), shared, environment))
        yield Proxied(system, redis, postgres, in_front_of_kafka, model)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_proxied(
    session_engines: OwnEngines,
    session_kafka: ProxiedKafka,
    session_model_server: ModelServer,
    standing_distributed: Standing[DistributedSystem],
) -> AsyncIterator[Proxied]:
    """The system that the tests of this module share."""
    await standing_distributed.end()  # one at a time
    session_engines.restore()
    async with _proxied(session_engines, session_kafka, session_model_server) as proxied:
        yield proxied


@pytest_asyncio.fixture(loop_scope="session")
async def proxied(module_proxied: Proxied, model_server: ModelServer) -> AsyncIterator[Proxied]:
    """A running system whose engines answer as they should, until the test changes that; replies of half a second."""
    await module_proxied.system.start()
    await model_server.configure(tokens=20, tps=40, echo=True)
    yield module_proxied
    for proxy in (module_proxied.redis, module_proxied.postgres, module_proxied.kafka, module_proxied.model):
        proxy.delay_seconds, proxy.away, proxy.deaf_to = 0.0, False, lambda _: False


async def test_websocket_server_that_turns_deaf_costs_its_users_a_reconnect_and_nothing_else(
    proxied: Proxied, model_server: ModelServer, tmp_path: Path
) -> None:
    system = proxied.system
    servers = system.of("websocket-server")
    async with crowd(system.url, tmp_path, _USERS) as users:
        async with users.talking():
            await users.until_answered_more(10)
            proxied.redis.subscriptions()[0].deaf = True
            async with asyncio.timeout(10):
                deaf = await _one_not_ready(servers)
            (other,) = {"websocket-server-1", "websocket-server-2"} - {deaf}
            there = [user for user in users.users if user.servers[-1] == deaf]
            assert there
            await users.until(lambda: all(1013 in user.closes for user in there), "closes with 1013", seconds=10)
            assert all(not user.closes for user in users.users if user not in there)
            await users.until(lambda: all(user.servers[-1] == other for user in there), "all on the other")
            await system[deaf].until_ready()
            await users.until_answered_more(20)
        await users.assert_kept(model_server, asked_once=True)
        assert all(tuple(user.closes) == (1013,) for user in there)
        assert users.refusals == set()


async def _one_not_ready(servers: list[DuologueProcess]) -> str:
    """Return the name of the server that is not ready, once one is not."""
    async with aiohttp.ClientSession() as session:
        while True:
            for number, server in enumerate(servers, start=1):
                if await status_of(session, f"{server.url}/ready") == 503:
                    return f"websocket-server-{number}"
            await asyncio.sleep(0.02)


async def test_slow_engines_cost_time_and_no_message(
    proxied: Proxied, model_server: ModelServer, tmp_path: Path
) -> None:
    async with crowd(proxied.system.url, tmp_path, _USERS) as users:
        async with users.talking(gap_seconds=2):
            for proxy in (proxied.redis, proxied.kafka, proxied.postgres):
                await users.until_answered_more(5)
                proxy.delay_seconds = _DELAY_SECONDS
                await users.until_answered_more(8)
                proxy.delay_seconds = 0.0
            await users.until_answered_more(10)
        await users.assert_kept(model_server, asked_once=True)
        assert users.refusals == set()
        assert not any(user.closes for user in users.users)


async def test_model_that_is_away_then_hangs_then_is_slow_costs_tries_and_no_reply(
    proxied: Proxied, model_server: ModelServer, tmp_path: Path
) -> None:
    model = proxied.model
    async with crowd(proxied.system.url, tmp_path, _USERS) as users:
        async with users.talking(gap_seconds=2):
            await users.until_answered_more(5)
            model.go_away()
            await _until_acknowledged_more(users, 10)
            model.away = False
            await users.until_answered_more(10)
            model.deaf_to = lambda _: True
            await _until_acknowledged_more(users, 10)
            model.deaf_to, model.delay_seconds = lambda _: False, 0.5
            await users.until_answered_more(10)
        await users.assert_kept(model_server, tries=7)
        assert users.refusals == set()
        assert not any(user.closes for user in users.users)


async def _until_acknowledged_more(users: Crowd, messages: int) -> None:
    wanted = users.acknowledged + messages
    await users.until(lambda: users.acknowledged >= wanted, f"{messages} more acknowledged messages")
