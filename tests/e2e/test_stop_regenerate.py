"""Stopping replies and asking for other ones, from any device, on any server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from tests.support.model_server import ModelServer
from tests.support.socket_client import Client, connected
from tests.support.users import guest

from duologue.bench.distributed import DistributedSystem
from duologue.bench.system import System

Frame = dict[str, Any]


class Devices:
    """Two devices of one user, on two servers where there are two."""

    def __init__(self, url: str, token: str, one: Client, other: Client) -> None:
        self.one = one
        self.other = other
        self._url = url
        self._token = token

    async def say(self, content: str = "Hello") -> str:
        """Send a message from the first device; return its id once it is stored, as both devices know by its echo."""
        await self.one.send(type="message", id=content, content=content)
        await self.one.until("echo")
        return str((await self.other.until("echo"))["message_id"])

    async def answered(self, content: str = "Hello") -> Frame:
        """Send a message and return its outcome."""
        await self.one.send(type="message", id=content, content=content)
        return await self.outcome()

    async def outcome(self) -> Frame:
        """Return the next outcome, which both devices are told."""
        first, second = await _outcome(self.one), await _outcome(self.other)
        assert first == second
        return first

    async def refused(self, **frame: Any) -> str:
        """Send a frame from the second device, which is refused; return the code."""
        await self.other.send(**frame, id="refused")
        error = await self.other.until("error")
        assert (error["id"], error["temporary"]) == ("refused", False)
        assert "message_id" not in error
        return str(error["code"])

    async def rows(self) -> list[Frame]:
        """Return the conversation as the history has it."""
        path = f"{self._url}/conversations/{self.one.connection['conversation_id']}/messages"
        headers = {"Authorization": f"Bearer {self._token}"}
        async with aiohttp.ClientSession() as session, session.get(path, headers=headers) as response:
            response.raise_for_status()
            items: list[Frame] = (await response.json())["items"]
            return items


async def _outcome(client: Client) -> Frame:
    while True:
        frame = await client.receive()
        if frame["type"] == "response" or (frame["type"] == "error" and "message_id" in frame):
            return frame


@asynccontextmanager
async def two_devices(system: System) -> AsyncIterator[Devices]:
    """Connect a new user from two devices."""
    one = other = system.ws_url
    if isinstance(system, DistributedSystem):
        one, other = (process.ws_url for process in system.of("websocket-server"))
    token = await guest(system.url)
    async with connected(one, token) as first, connected(other, token) as second:
        yield Devices(system.url, token, first, second)


async def test_stop_from_another_device_ends_the_reply_within_a_second_and_keeps_what_was_written(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=400, tps=20)
    async with two_devices(system) as devices:
        message = await devices.say()
        text = (await devices.other.until("delta"))["content"]
        started = asyncio.get_running_loop().time()
        for _ in range(2):  # sent again, it changes nothing
            await devices.other.send(type="stop", id="s", message_id=message)
        outcome = await devices.outcome()
        assert asyncio.get_running_loop().time() - started < 1.0
        assert (outcome["type"], outcome["finish_reason"], outcome["message_id"]) == ("response", "stopped", message)
        assert outcome["content"].startswith(text)
        assert (outcome["attempt"], outcome["generation"]) == (1, 1)
        await model_server.until(lambda stats: stats["abandoned"] == 1)
        await model_server.configure(tokens=8, tps=0)
        assert (await devices.answered("go on"))["finish_reason"] == "stop"
        stopped = (await devices.rows())[1]
        assert (stopped["state"], stopped["content"]) == ("stopped", outcome["content"])


async def test_stop_of_a_waiting_reply_cancels_it_and_the_one_before_goes_on(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=60, tps=40)
    async with two_devices(system) as devices:
        running, waiting = await devices.say("one"), await devices.say("two")
        await devices.other.send(type="stop", id="s", message_id=waiting)
        cancelled = await devices.outcome()
        assert (cancelled["message_id"], cancelled["finish_reason"], cancelled["content"]) == (waiting, "stopped", "")
        assert cancelled["attempt"] >= 1
        outcome = await devices.outcome()
        assert (outcome["message_id"], outcome["finish_reason"]) == (running, "stop")
        assert (await model_server.stats())["requests"] == 1


async def test_stop_of_a_finished_reply_changes_nothing(system: System, model_server: ModelServer) -> None:
    async with two_devices(system) as devices:
        outcome = await devices.answered()
        await devices.other.send(type="stop", id="s", message_id=outcome["message_id"])
        assert (await devices.other.until("ack"))["message_id"] == outcome["message_id"]
        assert (await devices.answered("next"))["finish_reason"] == "stop"
        assert [row["state"] for row in await devices.rows()] == ["complete"] * 4
        assert (await model_server.stats())["requests"] == 2


async def test_regenerate_replaces_the_reply_and_keeps_it_in_the_store(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=30, tps=60)
    async with two_devices(system) as devices:
        first = await devices.answered()
        frame = {"type": "regenerate", "id": "r", "message_id": first["message_id"]}
        await devices.other.send(**frame)
        ack = await devices.other.until("ack")
        assert (ack["message_id"], ack["duplicate"]) == (first["message_id"], False)
        reset = await devices.one.until("reset")
        assert (reset["message_id"], reset["attempt"], reset["reason"]) == (first["message_id"], 2, "regenerate")
        assert (await devices.one.until("delta"))["attempt"] == 2
        second = await devices.outcome()
        assert (second["attempt"], second["generation"]) == (2, 2)
        assert second["reply_id"] != first["reply_id"]
        await devices.other.send(**frame)  # as it was, when it had its effect already
        assert (await devices.other.until("ack"))["duplicate"] is True
        await devices.answered("next")
        replies = [row for row in await devices.rows() if row.get("reply_to") == first["message_id"]]
        assert [(row["generation"], row["content"]) for row in replies] == [
            (1, first["content"]),
            (2, second["content"]),
        ]
        assert (await model_server.stats())["requests"] == 3


async def test_regenerate_by_two_devices_at_once_makes_one_other_reply(
    system: System, model_server: ModelServer
) -> None:
    async with two_devices(system) as devices:
        first = await devices.answered()
        frame = {"type": "regenerate", "message_id": first["message_id"], "attempt": 1}
        await asyncio.gather(devices.one.send(**frame, id="one"), devices.other.send(**frame, id="other"))
        second = await devices.outcome()
        assert second["generation"] == 2
        assert (await devices.answered("next"))["generation"] == 1
        assert (await model_server.stats())["requests"] == 3


async def test_regenerate_after_a_stop_and_after_a_failure_answers(system: System, model_server: ModelServer) -> None:
    await model_server.configure(tokens=400, tps=20)
    async with two_devices(system) as devices:
        message = await devices.say()
        await devices.other.until("delta")
        stop = {"type": "stop", "id": "s", "message_id": message}
        await devices.other.send(**stop)
        assert (await devices.outcome())["finish_reason"] == "stopped"
        await model_server.configure(rate_500=1.0)
        await devices.one.send(type="regenerate", id="r1", message_id=message)
        failure = await devices.outcome()
        assert (failure["code"], failure["attempt"]) == ("generation_failed", 2)
        await model_server.configure(rate_500=0.0, tokens=30, tps=60)
        await devices.other.send(type="regenerate", id="r2", message_id=message)
        await devices.one.until("delta")
        await devices.other.send(**stop)  # a late copy ends nothing that was asked for after it
        answer = await devices.outcome()
        assert (answer["finish_reason"], answer["attempt"], answer["generation"]) == ("stop", 3, 3)
        states = [row["state"] for row in await devices.rows() if row.get("reply_to") == message]
        assert states == ["stopped", "failed", "complete"]


async def test_stop_of_a_regeneration_leaves_the_answer_before_it_in_the_history(
    system: System, model_server: ModelServer
) -> None:
    async with two_devices(system) as devices:
        first = await devices.answered()
        await model_server.configure(tokens=400, tps=20)
        await devices.one.send(type="regenerate", id="r", message_id=first["message_id"], attempt=1)
        while (await devices.other.until("delta"))["attempt"] != 2:
            pass
        await devices.other.send(type="stop", id="s", message_id=first["message_id"])
        stopped = await devices.outcome()
        assert (stopped["finish_reason"], stopped["attempt"], stopped["generation"]) == ("stopped", 2, 2)
        replies = [row for row in await devices.rows() if row.get("reply_to") == first["message_id"]]
        assert [(row["state"], row["content"]) for row in replies] == [
            ("complete", first["content"]),
            ("stopped", stopped["content"]),
        ]


async def test_regenerate_of_what_is_unfinished_or_not_the_last_is_refused(
    system: System, model_server: ModelServer
) -> None:
    async with two_devices(system) as devices:
        first = await devices.answered("one")
        await model_server.configure(tokens=400, tps=20)
        message = await devices.say("two")
        await devices.other.until("delta")
        assert await devices.refused(type="regenerate", message_id=message) == "still_generating"
        assert await devices.refused(type="regenerate", message_id=first["message_id"]) == "not_last"
        assert await devices.refused(type="regenerate", message_id="made-up") == "message_not_found"
        assert await devices.refused(type="stop", message_id="made-up") == "message_not_found"
        await devices.one.send(type="stop", message_id=message)
        assert (await devices.outcome())["finish_reason"] == "stopped"
        assert (await model_server.stats())["requests"] == 2


async def test_typing_is_told_to_the_other_device_only(system: System) -> None:
    async with two_devices(system) as devices:
        conversation = devices.one.connection["conversation_id"]
        await devices.one.send(type="typing", conversation_id=conversation, active=True)
        assert await devices.other.until("typing") == {
            "type": "typing",
            "role": "user",
            "conversation_id": conversation,
            "active": True,
        }
        await devices.one.send(type="message", id="one", content="Hello")
        seen = [await devices.one.receive()]
        while seen[-1]["type"] != "response":
            seen.append(await devices.one.receive())
        assert [frame["role"] for frame in seen if frame["type"] == "typing"] == ["ai", "ai"]
