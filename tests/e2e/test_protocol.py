"""The protocol on a whole system: what goes in and what comes back, frame by frame."""

from __future__ import annotations

import re
from typing import Any, Final

import aiohttp
from tests.support.model_server import ModelServer
from tests.support.socket_client import Client, connected
from tests.support.users import guest
from websockets.asyncio.client import connect

from duologue.bench.system import System


async def _until_response(client: Client) -> list[dict[str, Any]]:
    return await _until(client, "response")


async def _until(client: Client, kind: str) -> list[dict[str, Any]]:
    """Return all frames up to and with the next of that type."""
    seen = [await client.receive()]
    while seen[-1]["type"] != kind:
        seen.append(await client.receive())
    return seen


def _of(frames: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["type"] == kind]


async def test_message_comes_back_as_ack_echo_deltas_and_response(system: System, model_server: ModelServer) -> None:
    await model_server.configure(tokens=30, tps=100)
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client, connected(system.ws_url, token) as other:
        await client.send(type="message", id="one", content="Hello", metadata={"page": 3})
        seen = await _until_response(client)
        seen_there = await _until_response(other)
    [echo], [response], deltas = _of(seen, "echo"), _of(seen, "response"), _of(seen, "delta")
    [ack] = _of(seen, "ack") or [await client.until("ack")]
    assert (echo["role"], echo["id"], echo["content"], echo["metadata"]) == ("user", "one", "Hello", {"page": 3})
    assert (response["role"], response["userid"], response["metadata"]) == (
        "ai",
        client.connection["userid"],
        {"page": 3},
    )
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
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(echo=True)
    async with connected(system.ws_url, await guest(system.url)) as client:
        for number in range(10):
            await client.send(type="message", id=f"{number}", content=f"question {number}")
        answers = [await client.until("response") for _ in range(10)]
    assert all(f"question {number}" in answer["content"] for number, answer in enumerate(answers))


async def test_reconnecting_in_the_middle_of_a_reply_continues_it(system: System, model_server: ModelServer) -> None:
    await model_server.configure(tokens=60, tps=40)
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello")
        echo = await client.until("echo")
        await client.until("delta")
    async with connected(system.ws_url, token, last_event_id=echo["event_id"]) as client:
        assert client.connection["recovered"] is True
        snapshot = await client.receive()
        assert (snapshot["type"], snapshot["message_id"]) == ("snapshot", echo["message_id"])
        text, last = snapshot["content"], snapshot["seq"]
        seen = await _until_response(client)
    for delta in _of(seen, "delta"):
        assert delta.get("from_seq", delta["seq"]) == last + 1
        text, last = text + delta["content"], delta["seq"]
    assert seen[-1]["content"].startswith(text)


async def test_answer_that_came_while_nobody_was_there_is_waiting(system: System, model_server: ModelServer) -> None:
    await model_server.configure(tokens=10, tps=20)
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello")
        ack = await client.until("ack")
    await model_server.until(lambda stats: stats["completed"] == 1)
    async with connected(system.ws_url, token) as client:  # a simple client: it names no last event
        assert (await client.until("response"))["message_id"] == ack["message_id"]


async def test_message_sent_twice_is_answered_once(system: System, model_server: ModelServer) -> None:
    async with connected(system.ws_url, await guest(system.url)) as client:
        for _ in range(2):
            await client.send(type="message", id="one", content="Hello")
        await client.send(type="message", id="two", content="Hello again")
        outcomes = [await client.until("response") for _ in range(2)]
        await client.ping()
    assert len({outcome["message_id"] for outcome in outcomes}) == 2
    assert (await model_server.stats())["requests"] == 2


async def test_older_client_that_knows_content_only_is_answered(system: System) -> None:
    token = await guest(system.url)
    async with connect(f"{system.ws_url}/ws/creative?token={token}") as socket:
        client = Client(socket)
        user_id = (await client.receive())["userid"]
        await client.send(content="Hello")
        response = await client.until("response")
        assert response["content"]
        assert response["userid"] == user_id
        assert response["timestamp"].endswith("Z")
        assert response["processing_time_ms"] >= 0


async def test_reply_that_fails_is_told_with_its_message_and_again_after_a_reconnect(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(rate_500=1.0)
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
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
    async with connected(system.ws_url, token, last_event_id="unreadable") as client:
        assert client.connection["recovered"] is False
        assert await client.until("error") == error


TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
EVENT_ID: Final = re.compile(r"[A-Za-z0-9_:.-]{1,64}")
FIELDS: Final[dict[str, set[str]]] = {
    "connection": {
        "message", "session_id", "userid", "username", "character_id", "conversation_id", "server_id", "protocol",
        "features", "server_time", "limits", "recovered", "event_id",
    },
    "ack": {"id", "message_id", "conversation_id", "timestamp", "duplicate"},
    "echo": {"event_id", "role", "id", "message_id", "conversation_id", "content", "metadata", "timestamp"},
    "typing": {"role", "conversation_id", "active"},
    "delta": {"message_id", "conversation_id", "attempt", "seq", "content"},
    "snapshot": {"message_id", "conversation_id", "attempt", "seq", "content"},
    "response": {
        "event_id", "role", "message_id", "reply_id", "conversation_id", "content", "userid", "timestamp",
        "processing_time_ms", "model", "finish_reason", "usage", "attempt", "generation", "metadata", "correlation_id",
    },
    "pong": {"id", "server_time"},
}  # fmt: skip


def _assert_named_as_written(frame: dict[str, Any]) -> None:
    """A frame has the fields that the protocol names for its type, and times and event ids have their form."""
    allowed = {"from_seq"} if frame["type"] == "delta" else set()
    assert set(frame) - allowed == FIELDS[frame["type"]] | {"type"}
    for name in ("timestamp", "server_time"):
        assert name not in frame or TIME.fullmatch(frame[name]), frame
    assert "event_id" not in frame or EVENT_ID.fullmatch(frame["event_id"]), frame


async def test_frames_have_the_fields_that_the_protocol_names(system: System, model_server: ModelServer) -> None:
    await model_server.configure(tokens=30, tps=60)
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello", metadata={"page": 3})
        seen = [client.connection, *await _until(client, "delta")]
        async with connected(system.ws_url, token) as late:
            seen.append(await late.until("snapshot"))
        seen += await _until_response(client)
        await client.send(type="message", id="two", content="Hello", metadata={})
        seen += await _until_response(client)
        await client.send(type="ping", id="three")
        seen.append(await client.until("pong"))
    assert {frame["type"] for frame in seen} >= set(FIELDS) - {"snapshot"}
    for frame in seen:
        if frame["type"] != "queued":
            _assert_named_as_written(frame)
    assert seen[-1]["id"] == "three"
    usage = _of(seen, "response")[-1]["usage"]
    assert set(usage) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    metadata = [frame["metadata"] for frame in seen if frame["type"] in ("echo", "response")]
    assert metadata == [{"page": 3}, {"page": 3}, {}, {}]


async def test_typing_ends_before_the_response_and_nothing_of_a_reply_follows_it(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=10, tps=100)
    async with connected(system.ws_url, await guest(system.url)) as client:
        ended: set[str] = set()
        frame: dict[str, Any] = {}
        for number in range(3):
            await client.send(type="message", id=f"{number}", content="Hello")
        while len(ended) < 3:
            previous, frame = frame, await client.receive()
            if frame["type"] in ("delta", "snapshot", "reset"):
                assert frame["message_id"] not in ended
            elif frame["type"] == "response":
                assert (previous["type"], previous["role"], previous["active"]) == ("typing", "ai", False)
                ended.add(frame["message_id"])
        await client.ping()


async def test_durable_frames_of_a_user_are_numbered_without_a_gap_and_replayed_as_they_were(
    system: System,
) -> None:
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
        start = client.connection["event_id"]
        seen: list[dict[str, Any]] = []
        for number in range(3):
            await client.send(type="message", id=f"{number}", content=f"Hello {number}")
            seen += await _until_response(client)
    durable = [frame for frame in seen if "event_id" in frame]
    assert [frame["type"] for frame in durable] == ["echo", "response"] * 3
    for behind in range(-1, 6):
        last = start if behind < 0 else durable[behind]["event_id"]
        async with connected(system.ws_url, token, last_event_id=last) as client:
            assert (client.connection["recovered"], client.connection["event_id"]) == (True, last)
            missed = durable[behind + 1 :]
            assert [await client.receive() for _ in missed] == missed
            await client.send(type="ping", id="end")
            assert (await client.receive())["type"] == "pong"


async def test_missed_frames_come_before_the_snapshots_of_all_replies_being_written(
    system: System, model_server: ModelServer
) -> None:
    await model_server.configure(tokens=100, tps=20, echo=True)
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello")
        await client.send(type="message", id="two", content="Hello", character_id="creative")
        writing = {(await client.until("delta"))["message_id"]}
        while len(writing) < 2:
            writing.add((await client.until("delta"))["message_id"])
        client.socket.transport.abort()
    async with connected(system.ws_url, token) as client:
        assert [(await client.receive())["type"] for _ in range(2)] == ["echo", "echo"]
        snapshots = [await client.receive() for _ in range(2)]
        assert {(frame["type"], frame["message_id"]) for frame in snapshots} == {
            ("snapshot", message) for message in writing
        }
        last = {frame["message_id"]: frame["seq"] for frame in snapshots}
        texts = {frame["message_id"]: frame["content"] for frame in snapshots}
        ended: dict[str, str] = {}
        while len(ended) < 2:
            frame = await client.receive()
            if frame["type"] == "delta":
                message = frame["message_id"]
                assert frame.get("from_seq", frame["seq"]) == last[message] + 1
                last[message], texts[message] = frame["seq"], texts[message] + frame["content"]
            elif frame["type"] == "response":
                ended[frame["message_id"]] = frame["content"]
    assert all(ended[message].startswith(text) for message, text in texts.items())


async def test_what_was_told_over_the_socket_is_in_the_history(system: System, model_server: ModelServer) -> None:
    await model_server.configure(echo=True)
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
        await client.send(type="message", id="one", content="Hello", metadata={"page": 3})
        echo, response = await client.until("echo"), await client.until("response")
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{system.url}/conversations/{echo['conversation_id']}/messages") as got,
    ):
        said, replied = (await got.json())["items"]
    assert (said["id"], said["role"], said["content"], said["metadata"]) == (
        echo["message_id"],
        "user",
        "Hello",
        {"page": 3},
    )
    assert (replied["id"], replied["reply_to"], replied["content"], replied["attempt"], replied["generation"]) == (
        response["reply_id"],
        echo["message_id"],
        response["content"],
        1,
        1,
    )
