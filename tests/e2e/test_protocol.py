"""The protocol on a whole system: what goes in and what comes back, frame by frame."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from tests.support.model_server import ModelServer
from tests.support.socket_client import Client, connected
from websockets.asyncio.client import connect

from duologue.bench.system import EmbeddedSystem


@pytest.fixture
def system_settings() -> dict[str, str]:
    """One try at the model, so that a failure comes soon."""
    return {"USER_RATE_LIMIT_MAX_REQUESTS": "10000", "MODEL_MAX_TRIES": "1"}


async def guest(system: EmbeddedSystem, name: str) -> str:
    """Return the token of a new guest."""
    async with aiohttp.ClientSession() as session, session.post(f"{system.url}/token?userid={name}") as response:
        token: str = (await response.json())["token"]
        return token


async def _until_response(client: Client) -> list[dict[str, Any]]:
    seen = [await client.receive()]
    while seen[-1]["type"] != "response":
        seen.append(await client.receive())
    return seen


def _of(frames: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["type"] == kind]


async def test_message_comes_back_as_ack_echo_deltas_and_response(
    embedded: EmbeddedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=30, tps=100)
    token = await guest(embedded, "ann")
    async with connected(embedded.ws_url, token) as client, connected(embedded.ws_url, token) as other:
        await client.send(type="message", id="one", content="Hello", metadata={"page": 3})
        seen = await _until_response(client)
        seen_there = await _until_response(other)
    [echo], [response], deltas = _of(seen, "echo"), _of(seen, "response"), _of(seen, "delta")
    [ack] = _of(seen, "ack") or [await client.until("ack")]
    assert (echo["role"], echo["id"], echo["content"], echo["metadata"]) == ("user", "one", "Hello", {"page": 3})
    assert (response["role"], response["userid"], response["metadata"]) == ("ai", "ann", {"page": 3})
    assert (response["attempt"], response["generation"], response["finish_reason"]) == (1, 1, "stop")
    assert {frame["message_id"] for frame in (ack, echo, response, *deltas)} == {ack["message_id"]}
    assert {frame["conversation_id"] for frame in (ack, echo, response, *deltas)} == {
        client.connection["conversation_id"]
    }
    assert len(deltas) > 2
    assert response["content"].startswith(
        "".join(delta["content"] for delta in deltas)
    )  # the end may come with it only
    last = 0
    for delta in deltas:
        assert delta.get("from_seq", delta["seq"]) == last + 1
        last = delta["seq"]
    assert not _of(seen_there, "ack")
    assert _of(seen_there, "echo") == [echo]
    assert _of(seen_there, "response") == [response]


async def test_messages_of_a_conversation_are_answered_in_their_order(
    embedded: EmbeddedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(echo=True)
    async with connected(embedded.ws_url, await guest(embedded, "ann")) as client:
        for number in range(10):
            await client.send(type="message", id=f"{number}", content=f"question {number}")
        answers = [await client.until("response") for _ in range(10)]
    assert all(f"question {number}" in answer["content"] for number, answer in enumerate(answers))


async def test_reconnecting_in_the_middle_of_a_reply_continues_it(
    embedded: EmbeddedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=60, tps=40)
    token = await guest(embedded, "ann")
    async with connected(embedded.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello")
        echo = await client.until("echo")
        await client.until("delta")
    async with connected(embedded.ws_url, token, last_event_id=echo["event_id"]) as client:
        assert client.connection["recovered"] is True
        snapshot = await client.receive()
        assert (snapshot["type"], snapshot["message_id"]) == ("snapshot", echo["message_id"])
        text, last = snapshot["content"], snapshot["seq"]
        seen = await _until_response(client)
    for delta in _of(seen, "delta"):
        assert delta.get("from_seq", delta["seq"]) == last + 1
        text, last = text + delta["content"], delta["seq"]
    assert seen[-1]["content"].startswith(text)


async def test_answer_that_came_while_nobody_was_there_is_waiting(
    embedded: EmbeddedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=10, tps=20)
    token = await guest(embedded, "ann")
    async with connected(embedded.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello")
        ack = await client.until("ack")
    await model_server.until(lambda stats: stats["completed"] == 1)
    async with connected(embedded.ws_url, token) as client:  # a simple client: it names no last event
        assert (await client.until("response"))["message_id"] == ack["message_id"]


async def test_message_sent_twice_is_answered_once(embedded: EmbeddedSystem, model_server: ModelServer) -> None:
    async with connected(embedded.ws_url, await guest(embedded, "ann")) as client:
        for _ in range(2):
            await client.send(type="message", id="one", content="Hello")
        await client.send(type="message", id="two", content="Hello again")
        outcomes = [await client.until("response") for _ in range(2)]
        await client.ping()
    assert len({outcome["message_id"] for outcome in outcomes}) == 2
    assert (await model_server.stats())["requests"] == 2


async def test_older_client_that_knows_content_only_is_answered(embedded: EmbeddedSystem) -> None:
    token = await guest(embedded, "ann")
    async with connect(f"{embedded.ws_url}/ws/creative?token={token}") as socket:
        client = Client(socket)
        await client.send(content="Hello")
        response = await client.until("response")
        assert response["content"]
        assert response["userid"] == "ann"
        assert response["timestamp"].endswith("Z")
        assert response["processing_time_ms"] >= 0


async def test_reply_that_fails_is_told_with_its_message_and_again_after_a_reconnect(
    embedded: EmbeddedSystem, model_server: ModelServer
) -> None:
    await model_server.configure(rate_500=1.0)
    token = await guest(embedded, "ann")
    async with connected(embedded.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello", metadata={"page": 3})
        ack = await client.until("ack")
        error = await client.until("error")
        assert (error["code"], error["message_id"], error["metadata"]) == (
            "generation_failed",
            ack["message_id"],
            {"page": 3},
        )
        await model_server.configure(rate_500=0.0)
        await client.send(type="message", id="two", content="Hello again")
        await client.until("response")
    async with connected(embedded.ws_url, token, last_event_id="unreadable") as client:
        assert client.connection["recovered"] is False
        assert await client.until("error") == error
