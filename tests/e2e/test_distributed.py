"""What only many processes can show: users on two servers, processes that come, go and die under load."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.support.crowd import crowd
from tests.support.model_server import ModelServer
from tests.support.socket_client import Client, connected
from tests.support.users import guest

from duologue.bench.distributed import DistributedSystem, RoleName
from duologue.bench.load.crowd import Crowd, Entrance, names_of
from duologue.bench.process import DuologueProcess, status_of

_ROLES: Sequence[RoleName] = ("websocket-server", "ai-consumer", "message-relay", "api")


async def _until(client: Client, kind: str, times: int = 1) -> list[dict[str, Any]]:
    """Return all frames up to and with the next of that type, or the one after that, and so on."""
    seen: list[dict[str, Any]] = []
    while len(_of(seen, kind)) < times:
        seen.append(await client.receive())
    return seen


def _of(frames: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["type"] == kind]


def _durable(frames: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frame for frame in frames if "event_id" in frame]


# One user on two servers


async def test_devices_on_two_servers_see_the_same_frames(
    distributed: DistributedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=30, tps=60, echo=True)
    first, second = distributed.of("websocket-server")
    token = await guest(distributed.url)
    async with connected(first.ws_url, token) as one, connected(second.ws_url, token) as other:
        assert one.connection["server_id"] != other.connection["server_id"]
        for number in range(3):
            await one.send(type="message", id=f"one-{number}", content=f"from one {number}")
            await other.send(type="message", id=f"other-{number}", content=f"from the other {number}")
        seen, seen_there = await asyncio.gather(_until(one, "response", 6), _until(other, "response", 6))
    assert _durable(seen) == _durable(seen_there)
    assert len(_durable(seen)) == 12
    assert _texts(seen) == _texts(seen_there)
    assert {frame["id"] for frame in _of(seen, "ack")} == {f"one-{number}" for number in range(3)}


def _texts(frames: Sequence[dict[str, Any]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for delta in _of(frames, "delta"):
        texts[delta["message_id"]] = texts.get(delta["message_id"], "") + delta["content"]
    return texts


async def test_client_that_moves_to_the_other_server_and_back_misses_nothing_and_sees_nothing_twice(
    distributed: DistributedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=10, tps=50, echo=True)
    servers = distributed.of("websocket-server")
    token = await guest(distributed.url)
    async with connected(servers[0].ws_url, token) as resident:
        moved, last = [], resident.connection["event_id"]
        for number in range(6):
            await resident.send(type="message", id=f"{number}", content=f"question {number}")
            async with connected(servers[(number + 1) % 2].ws_url, token, last_event_id=last) as mover:
                assert mover.connection["recovered"] is True
                # It leaves in the middle of a reply, at the echo, or when the reply has ended.
                moved += _durable(await _until(mover, ("delta", "echo", "response")[number % 3]))
            last = moved[-1]["event_id"] if moved else last
        stayed = _durable(await _until(resident, "response", 6))
        async with connected(servers[1].ws_url, token, last_event_id=last) as mover:
            while len(moved) < len(stayed):
                moved.append(await mover.receive())
            await mover.ping()
    assert moved == stayed


async def test_client_that_moves_in_the_middle_of_a_reply_gets_the_rest_on_the_other_server(
    distributed: DistributedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=60, tps=30)
    first, second = distributed.of("websocket-server")
    token = await guest(distributed.url)
    async with connected(first.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello")
        echo = await client.until("echo")
        await client.until("delta")
        async with connected(second.ws_url, token, last_event_id=echo["event_id"]) as moved:
            snapshot = await moved.receive()
            seen = await _until(moved, "response")
        [response] = _of(await _until(client, "response"), "response")
    assert (snapshot["type"], snapshot["attempt"]) == ("snapshot", 1)
    assert seen[-1] == response
    text, last = snapshot["content"], snapshot["seq"]
    assert _of(seen, "delta"), "the reply had ended before the client moved"
    for delta in _of(seen, "delta"):
        assert delta.get("from_seq", delta["seq"]) == last + 1
        text, last = text + delta["content"], delta["seq"]
    assert response["content"].startswith(text)


# Processes that come and go under load


@pytest_asyncio.fixture(loop_scope="session")
async def talk(model_server: ModelServer) -> None:
    """Replies of half a second, each with what was asked."""
    await model_server.configure(tokens=20, tps=40, echo=True)


async def test_consumers_that_join_and_leave_under_load_change_nothing_for_users(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path
) -> None:
    async with crowd(distributed.url, tmp_path, users=20) as users:
        async with users.talking():
            await users.until_answered_more(10)
            async with distributed.another("ai-consumer") as third:
                await _until_counted(third, r'duologue_replies_total\{outcome="complete"\}')
                assert await distributed["ai-consumer-1"].terminate() == 0
                await users.until_answered_more(20)
                await distributed["ai-consumer-1"].start()
                await users.until_answered_more(20)
                assert await third.terminate() == 0
            await users.until_answered_more(20)
        await users.assert_kept(model_server, asked_once=True)


async def _until_counted(process: DuologueProcess, metric: str) -> None:
    """Wait until a counter of the process has grown; `metric` is a pattern."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        begin = await _metric(session, process, metric)
        while await _metric(session, process, metric) == begin:  # noqa: ASYNC110  # it is another process
            await asyncio.sleep(0.05)


async def _metric(session: aiohttp.ClientSession, process: DuologueProcess, name: str) -> float:
    async with session.get(f"{process.url}/metrics") as response:
        found = re.search(rf"^{name} (\S+)", await response.text(), re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("role", _ROLES)
async def test_process_killed_under_load_loses_and_doubles_nothing(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path, role: RoleName
) -> None:
    async with crowd(distributed.url, tmp_path, users=20) as users:
        async with users.talking():
            await users.until_answered_more(10)
            victim = distributed.of(role)[0]
            await victim.kill()
            await users.until_answered_more(30)
            await victim.start()
            await users.until_answered_more(30)
        await users.assert_kept(model_server, asked_once=role != "ai-consumer")


async def test_both_processes_of_a_role_killed_one_after_the_other_lose_and_double_nothing(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path
) -> None:
    """The first is back, but perhaps not in its group, when the second dies."""
    async with crowd(distributed.url, tmp_path, users=20) as users:
        async with users.talking():
            await users.until_answered_more(10)
            for name in ("ai-consumer-1", "message-relay-1", "ai-consumer-2", "message-relay-2"):
                await distributed[name].kill()
                await distributed[name].spawn()
                await users.until_answered_more(5)
            await distributed.start()
            await users.until_answered_more(20)
        await users.assert_kept(model_server)


async def test_consumers_that_hang_and_wake_up_when_others_have_taken_over_double_nothing(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path
) -> None:
    hanging = [distributed["ai-consumer-1"], distributed["message-relay-1"]]
    async with crowd(distributed.url, tmp_path, users=20) as users:
        async with users.talking():
            await users.until_answered_more(10)
            for process in hanging:
                process.pause()
            await _until_counted(distributed["ai-consumer-2"], "duologue_takeovers_total")
            await users.until_answered_more(10)
            for process in hanging:
                process.resume()
            await users.until_answered_more(40)
        await users.assert_kept(model_server)


async def test_users_of_a_killed_websocket_server_are_on_the_other_within_their_back_off(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path
) -> None:
    async with crowd(distributed.url, tmp_path, users=20) as users, users.talking():
        await users.until_answered_more(10)
        assert {user.servers[-1] for user in users.users} == {"websocket-server-1", "websocket-server-2"}
        await distributed["websocket-server-1"].kill()
        await users.until_on("websocket-server-2", seconds=10)
        assert all(len(user.closes) <= 2 for user in users.users), "nginx sent them to the dead one again"


async def test_websocket_server_that_drains_sends_its_users_to_the_other_without_an_error(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path
) -> None:
    async with crowd(distributed.url, tmp_path, users=20) as users:
        async with users.talking():
            await users.until_answered_more(10)
            there = [user for user in users.users if user.servers[-1] == "websocket-server-1"]
            assert await distributed["websocket-server-1"].terminate() == 0
            await users.until_on("websocket-server-2", seconds=10)
            await users.until_answered_more(20)
        await users.assert_kept(model_server, asked_once=True)
        assert {tuple(user.closes) for user in there} == {(1012,)}
        assert not any(user.closes for user in users.users if user not in there)
        assert users.refusals == set()


async def test_new_connections_never_reach_a_websocket_server_that_drains(distributed: DistributedSystem) -> None:
    draining = distributed["websocket-server-1"]
    token = await guest(distributed.url)
    entrance = Entrance(distributed.url, draining.ws_url, distributed.jwt_secret)
    await Crowd(entrance, names_of(200, "idle")).connect()  # it takes 2 s to close them
    draining.signal(signal.SIGTERM)
    await _until_not_ready(draining)
    met: list[str] = []
    while draining.running:
        async with connected(distributed.ws_url, token) as client:
            met.append(client.connection["server_id"])
    assert len(met) > 3
    assert set(met) == {"websocket-server-2"}
    assert await draining.ended() == 0


async def _until_not_ready(process: DuologueProcess) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(10):
        while await status_of(session, f"{process.url}/ready") == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _until_let_in(distributed: DistributedSystem, process: DuologueProcess) -> None:
    """Wait until nginx sends clients to a server that has nobody: for 3 s it remembers that one was away."""
    token = await guest(distributed.url)
    met = None
    async with asyncio.timeout(10):
        while met is not process:
            async with connected(distributed.ws_url, token) as client:
                met = distributed.server(client.connection["server_id"])


@pytest.mark.timeout(240)  # seven processes, one after the other
async def test_rolling_restart_of_every_role_under_load_changes_nothing_for_users(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path
) -> None:
    async with crowd(distributed.url, tmp_path, users=12) as users:
        async with users.talking(gap_seconds=2):
            await users.until_answered_more(10)
            for role in _ROLES:
                for process in distributed.of(role):
                    assert await process.terminate() == 0
                    await process.start()
                    if role == "websocket-server":
                        await _until_let_in(distributed, process)
                    await users.until_answered_more(5)
        await users.assert_kept(model_server, asked_once=True)
        assert users.refusals == set()
        assert {code for user in users.users for code in user.closes} == {1012}


async def test_reply_that_outlasts_the_drain_goes_on_elsewhere_under_the_next_attempt(
    distributed: DistributedSystem, model_server: ModelServer, tmp_path: Path
) -> None:
    await model_server.configure(tokens=100, tps=10, echo=True)  # 10 s
    async with crowd(distributed.url, tmp_path, users=12) as users:
        async with distributed.another("ai-consumer", {"DRAIN_SECONDS": "1"}) as third:
            async with users.talking():
                await _until_counted(third, "duologue_replies_running")
            assert await third.terminate() == 0
        await model_server.configure(tps=400)
        await users.assert_kept(model_server)
        assert {attempt for user in users.users for attempt in user.attempts.values()} == {1, 2}
        assert users.refusals == set()
        assert not any(user.closes for user in users.users)


async def test_system_stopped_role_by_role_tells_its_users_what_it_finishes(
    distributed: DistributedSystem, model_server: ModelServer, talk: None, tmp_path: Path
) -> None:
    """In the order of `make stop-all` and of the compose files: who answers, who delivers, who holds the sockets."""
    async with crowd(distributed.url, tmp_path, users=12) as users:
        for user in users.users:
            user.say()
        await asyncio.gather(*(user.until_echoed(1) for user in users.users))
        for role in ("ai-consumer", "message-relay", "websocket-server"):
            ends = await asyncio.gather(*(process.terminate() for process in distributed.of(role)))
            assert set(ends) == {0}
        assert users.answered == 12
