"""An engine of the distributed mode goes away under load and comes back: waiting, refusals in words, and no loss."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from tests.support.crowd import Crowd, crowd
from tests.support.model_server import ModelServer
from tests.support.socket_client import Client
from tests.support.users import guest
from websockets.asyncio.client import connect

from duologue.bench.distributed import DistributedSystem, OwnEngines, RoleName
from duologue.bench.process import DuologueProcess
from duologue.cluster.server_process import ServerProcess

_USERS = 12
_ROLES: Sequence[RoleName] = ("websocket-server", "ai-consumer", "message-relay", "api")


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def talk(model_server: ModelServer) -> None:
    """Replies of half a second, each with what was asked."""
    await model_server.configure(tokens=20, tps=40, echo=True)


async def _until_everybody_misses(system: DistributedSystem, check: str) -> None:
    """Wait until no process is ready, each because of that engine."""
    processes = [process for role in _ROLES for process in system.of(role)]
    async with asyncio.timeout(30):
        await asyncio.gather(*(_until_missed(process, check) for process in processes))


async def _until_missed(process: DuologueProcess, check: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{process.url}/ready") as response:
                if response.status == 503 and json.loads(await response.text())["checks"][check]["state"] != "ok":
                    return
            await asyncio.sleep(0.1)


async def _until_ready(system: DistributedSystem) -> None:
    await asyncio.gather(*(process.until_ready() for role in _ROLES for process in system.of(role)))


async def _away(server: ServerProcess) -> None:
    await asyncio.to_thread(server.stop)


async def _back(server: ServerProcess) -> None:
    await asyncio.to_thread(server.start)


async def test_database_away_costs_waiting_and_no_message(
    distributed: DistributedSystem, engines: OwnEngines, model_server: ModelServer, tmp_path: Path
) -> None:
    token = await guest(distributed.url)
    async with crowd(distributed.url, tmp_path, _USERS) as users:
        async with users.talking():
            await users.until_answered_more(10)
            await _away(engines.postgres)
            await _until_everybody_misses(distributed, "store")
            assert await _end_of_connecting(distributed, token) == ("service_unavailable", 1013)
            accepted = users.acknowledged
            await users.until(lambda: users.acknowledged > accepted + 20, "more acknowledged messages")
            await _back(engines.postgres)
            await users.until_answered_more(60)
        await _until_ready(distributed)
        await users.assert_kept(model_server, asked_once=True)
        assert users.refusals <= {"service_unavailable"}
        assert all(recovered for user in users.users for recovered in user.recovered)


async def _end_of_connecting(system: DistributedSystem, token: str) -> tuple[str, int]:
    """Return what a client is told that connects now, and how it is closed."""
    async with connect(f"{system.ws_url}/ws?token={token}", open_timeout=10) as socket:
        client = Client(socket)
        return (await client.receive())["code"], await client.closed()


@pytest.mark.parametrize("kept", [True, False], ids=["with-its-data", "empty"])
async def test_redis_killed_and_back_loses_and_doubles_nothing(
    distributed: DistributedSystem, engines: OwnEngines, model_server: ModelServer, tmp_path: Path, kept: bool
) -> None:
    async with crowd(distributed.url, tmp_path, _USERS) as users:
        async with users.talking():
            await users.until_answered_more(10)
            await asyncio.to_thread(engines.valkey.kill)
            await _until_everybody_misses(distributed, "redis")
            await _until_refused(users)
            if not kept:
                shutil.rmtree(engines.valkey.folder / "appendonlydir")
            await _back(engines.valkey)
            await users.until_answered_more(40)
        await _until_ready(distributed)
        await users.assert_kept(model_server, told=False)
        assert users.refusals <= {"service_unavailable"}


async def test_kafka_away_refuses_in_words_and_loses_nothing_that_was_accepted(
    distributed: DistributedSystem, engines: OwnEngines, model_server: ModelServer, tmp_path: Path
) -> None:
    async with crowd(distributed.url, tmp_path, _USERS) as users:
        async with users.talking():
            await users.until_answered_more(10)
            await _away(engines.kafka)
            await _until_everybody_misses(distributed, "log")
            await _until_refused(users)
            await _back(engines.kafka)
            await users.until_answered_more(40)
        await _until_ready(distributed)
        await users.assert_kept(model_server)
        assert users.refusals == {"service_unavailable"}
        assert all(recovered for user in users.users for recovered in user.recovered)


@pytest.mark.parametrize(("name", "check"), [("valkey", "redis"), ("kafka", "log"), ("postgres", "store")])
async def test_engine_that_hangs_costs_waiting_and_loses_and_doubles_nothing(
    distributed: DistributedSystem,
    engines: OwnEngines,
    model_server: ModelServer,
    tmp_path: Path,
    name: str,
    check: str,
) -> None:
    server: ServerProcess = getattr(engines, name)
    async with crowd(distributed.url, tmp_path, _USERS) as users:
        async with users.talking():
            await users.until_answered_more(10)
            server.pause()
            await _until_everybody_misses(distributed, check)
            if name != "postgres":  # of which an open socket needs nothing
                await _until_refused(users)
            server.resume()
            await users.until_answered_more(40)
        await _until_ready(distributed)
        await users.assert_kept(model_server)
        assert users.refusals <= {"service_unavailable"}
        assert all(recovered for user in users.users for recovered in user.recovered)
        assert not any(user.closes for user in users.users)


async def test_redis_flushed_tells_everybody_and_loses_and_doubles_nothing(
    distributed: DistributedSystem, engines: OwnEngines, model_server: ModelServer, tmp_path: Path
) -> None:
    async with crowd(distributed.url, tmp_path, _USERS) as users:
        async with users.talking():
            await users.until_answered_more(10)
            await asyncio.to_thread(engines.valkey.flush)
            await users.until(lambda: all(False in user.recovered for user in users.users), "everybody told")
            await users.until_answered_more(20)
        await users.assert_kept(model_server, told=False, asked_once=True)
        assert users.refusals == set()
        assert not any(user.closes for user in users.users)
        assert all(user.recovered.count(False) == 1 for user in users.users)


async def _until_refused(users: Crowd) -> None:
    """Wait until somebody was told that nothing can be accepted now, with a time to come back."""
    await users.until(lambda: "service_unavailable" in users.refusals, "a refusal in words")
    for user in users.users:
        assert all(error["temporary"] and error["retry_after"] > 0 for error in user.errors)
