"""Messages in, frames out, on a real socket and real engines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.edge import Edge, eventually, running_edge, user
from tests.support.socket_client import Client
from websockets.asyncio.client import connect

from duologue.cluster.valkey import ValkeyServer
from duologue.delivery.stream import DurableFrame
from duologue.domain.ids import message_id
from duologue.protocol import frames


def _echo(number: int) -> DurableFrame:
    frame = frames.Echo(
        role="user", id=f"c{number}", message_id=f"m{number}", conversation_id="c", content="Hello", timestamp="now"
    )
    return DurableFrame("echo", f"m{number}", 0, frames.encode(frame))


def _delta(seq: int) -> bytes:
    return frames.encode(frames.Delta(message_id="m1", conversation_id="c", attempt=1, seq=seq, content=f"w{seq} "))


async def test_message_is_on_the_log_when_it_is_acknowledged(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        await client.send(type="message", id="one", content="Hello", metadata={"page": 3})
        ack = await client.receive()
        [record] = await edge.records(1)
    assert ack["timestamp"].endswith("Z")
    assert ack == {
        "type": "ack",
        "id": "one",
        "message_id": record.message_id,
        "conversation_id": client.connection["conversation_id"],
        "timestamp": ack["timestamp"],
        "duplicate": False,
    }
    assert (record.user_id, record.client_id, record.content, record.metadata) == ("ann", "one", "Hello", {"page": 3})
    assert record.conversation_id == client.connection["conversation_id"]
    assert record.message_id == message_id(
        tenant="default", uid=record.uid, client_id="one", content="Hello", conversation_id=None
    )


@pytest.mark.parametrize("size", [1, 125, 126, 4000, 65_535, 65_536, 200_000])
async def test_frame_of_any_size_arrives_as_it_was_sent(edge: Edge, size: int) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        frame = json.dumps({"type": "delta", "content": "x" * size})
        await edge.streams.publish(user("ann"), frame.encode())
        assert await client.receive() == json.loads(frame)


async def test_messages_of_a_socket_are_on_the_log_in_their_order(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        for number in range(50):
            await client.send(
                type="message", id=f"{number}", content="Hello", character_id=("creative", None)[number % 2]
            )
        acks = [await client.until("ack") for _ in range(50)]
    assert [ack["id"] for ack in acks] == [str(number) for number in range(50)]
    assert [record.client_id for record in await edge.records(50)] == [str(number) for number in range(50)]


async def test_message_sent_again_is_appended_again_and_called_a_duplicate(edge: Edge) -> None:
    token = await edge.token("ann")
    async with edge.connect(token) as client:
        await client.send(type="message", id="one", content="Hello")
        first = await client.receive()
        await client.ping()  # by then its note is on its way to Redis, before the next admission
    async with edge.connect(token) as client:
        await client.send(type="message", id="one", content="Hello")
        second = await client.receive()
        await client.send(type="message", id="one", content="Goodbye")
        other = await client.receive()
    assert (first["duplicate"], second["duplicate"], other["duplicate"]) == (False, True, False)
    assert first["message_id"] == second["message_id"] != other["message_id"]
    assert len(await edge.records(3)) == 3


async def test_message_without_id_gets_one(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        await client.send(type="message", content="Hello")
        assert (await client.receive())["id"]


async def test_message_goes_where_it_names(edge: Edge) -> None:
    token = await edge.token("ann")
    async with edge.connect(token, "/ws/creative") as client:
        creative = client.connection["conversation_id"]
    async with edge.connect(token) as client:
        for _ in range(2):  # looked up, then remembered
            await client.send(type="message", content="Hello", character_id="creative")
            assert (await client.receive())["conversation_id"] == creative
            await client.send(type="message", content="Hello", conversation_id=creative)
            assert (await client.receive())["conversation_id"] == creative
        await client.send(type="message", content="Hello", conversation_id=client.connection["conversation_id"])
        assert (await client.receive())["conversation_id"] == client.connection["conversation_id"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"conversation_id": "made-up"}, "conversation_not_found"),
        ({"character_id": "nobody"}, "character_not_found"),
        ({"model": "unknown"}, "model_not_allowed"),
        ({"userid": "bob"}, "userid_mismatch"),
    ],
)
async def test_message_that_names_what_is_not_the_users_is_refused_and_the_socket_lives(
    edge: Edge, fields: dict[str, Any], code: str
) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        await client.send(type="message", id="one", content="Hello", **fields)
        error = await client.receive()
        assert (error["type"], error["code"], error["id"], error["temporary"]) == ("error", code, "one", False)
        await client.send(type="message", id="two", content="Hello", userid="ann", model=edge.settings.openai_model)
        assert (await client.receive())["id"] == "two"


async def test_older_client_without_type_is_served(edge: Edge) -> None:
    token = await edge.token("ann")
    async with connect(f"{edge.url}/ws/creative?token={token}") as socket:
        client = Client(socket)
        await client.receive()
        await client.send(content="Hello")
        assert (await client.receive())["type"] == "ack"
    async with connect(f"{edge.url}/ws?token={token}&userid=ann") as socket:
        client = Client(socket)
        await client.receive()
        await client.send(type="message", content="Hello", userid="ann")
        assert (await client.receive())["type"] == "ack"


async def test_user_over_the_limit_is_told_when_to_come_back_and_others_notice_nothing(
    valkey: str, tmp_path: Path
) -> None:
    async with running_edge(valkey, tmp_path, user_rate_limit_max_requests=5) as edge:
        ann, bob = await edge.token("ann"), await edge.token("bob")
        async with edge.connect(ann) as hasty, edge.connect(bob) as calm:
            for number in range(100):
                await hasty.send(type="message", id=f"{number}", content="Hello")
            answers = [await hasty.receive() for _ in range(100)]
            refused = [answer for answer in answers if answer["type"] == "error"]
            assert {answer["code"] for answer in refused} == {"rate_limited"}
            assert all(answer["temporary"] and 0 < answer["retry_after"] <= 60 for answer in refused)
            acknowledged = [answer["id"] for answer in answers if answer["type"] == "ack"]
            assert 5 <= len(acknowledged) <= 6
            await hasty.send(type="message", id=acknowledged[0], content="Hello")  # a repeat is not counted
            assert (await hasty.receive())["duplicate"] is True
            await calm.send(type="message", content="Hello")
            assert (await calm.receive())["type"] == "ack"


async def test_log_away_refuses_with_the_id_and_is_served_again_when_it_is_back(
    valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with running_edge(valkey_server.url, tmp_path) as edge, edge.connect(await edge.token("ann")) as client:
        valkey_server.stop()
        await client.send(type="message", id="one", content="Hello")
        error = await client.receive()
        assert (error["code"], error["id"], error["temporary"]) == ("service_unavailable", "one", True)
        assert error["retry_after"] > 0
        valkey_server.start()
        await eventually(lambda: edge.streams.connected)
        answer: dict[str, Any] = {}
        while answer.get("type") != "ack":  # the log's connection may come back a moment later
            await client.send(type="message", id="one", content="Hello")
            answer = await client.receive()
        assert answer["id"] == "one"


async def test_frames_of_the_stream_reach_every_device_and_come_again_after_a_reconnect(edge: Edge) -> None:
    token = await edge.token("ann")
    async with edge.connect(token) as phone, edge.connect(token) as laptop:
        await edge.streams.apply(user("ann"), [_echo(1), _echo(2)])
        seen = [await phone.receive() for _ in range(2)]
        assert seen == [await laptop.receive() for _ in range(2)]
        assert [frame["message_id"] for frame in seen] == ["m1", "m2"]
    async with edge.connect(token, last_event_id=seen[0]["event_id"]) as client:
        assert (client.connection["recovered"], client.connection["event_id"]) == (True, seen[0]["event_id"])
        assert await client.receive() == seen[1]
    async with edge.connect(token, last_event_id="unreadable") as client:
        assert client.connection["recovered"] is False
        assert [await client.receive(), await client.receive()] == seen


async def test_resume_on_the_same_socket_greets_and_replays(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        await edge.streams.apply(user("ann"), [_echo(1), _echo(2)])
        seen = [await client.receive() for _ in range(2)]
        await client.send(type="resume", last_event_id=seen[0]["event_id"])
        assert (await client.receive())["type"] == "connection"
        assert await client.receive() == seen[1]
        await client.send(type="message", content="Hello")
        assert (await client.receive())["type"] == "ack"


async def test_deltas_of_a_reply_come_through_whole(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        await edge.streams.open_live(user("ann"), "m1", "c", 1, None)
        sent = [
            edge.streams.append_live(user("ann"), "m1", 1, seq, seq, f"w{seq} ", _delta(seq)) for seq in range(1, 101)
        ]
        await asyncio.gather(*sent)
        text, last = "", 0
        while last < 100:
            delta = await client.until("delta")
            assert delta.get("from_seq", delta["seq"]) == last + 1
            text, last = text + delta["content"], delta["seq"]
    assert text == "".join(f"w{seq} " for seq in range(1, 101))


async def test_auth_frame_renews_or_is_refused_while_the_socket_stays_open(edge: Edge) -> None:
    ann, bob = await edge.token("ann"), await edge.token("bob")
    async with edge.connect(ann) as client:
        await client.send(type="auth", token=ann)
        await client.ping()
        await client.send(type="auth", token=bob)
        assert (await client.receive())["code"] == "userid_mismatch"
        await client.send(type="auth", token="nonsense")
        assert (await client.receive())["code"] == "invalid_token"
        await client.ping()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("not json", "invalid_json"),
        ('{"type":"message","content":"cut', "invalid_json"),
        ("[1, 2]", "invalid_frame"),
        (b'{"type":"ping"}', "invalid_frame"),
        ('{"type":"message","content":"a","x":' + "[" * 40 + "]" * 40 + "}", "invalid_frame"),
        ("[" * 60_000, "invalid_frame"),
        ('{"type":"message","content":"a\\u0000b"}', "invalid_frame"),
        ('{"type":"message","content":"a\\ud800b"}', "invalid_frame"),
        (json.dumps({"type": "message", "content": "a", "metadata": {"a": "x" * 1024}}), "invalid_frame"),
        (json.dumps({"type": "message", "content": "a", "id": "x" * 65}), "invalid_frame"),
        (json.dumps({"type": "message", "content": "x" * 8001}), "content_too_long"),
        (json.dumps({"type": "message", "content": " \n "}), "content_empty"),
        (json.dumps({"type": "hello"}), "unknown_type"),
        (json.dumps({"type": "stop"}), "invalid_frame"),
        (json.dumps({"type": "stop", "message_id": "a\0b"}), "invalid_frame"),
        (json.dumps({"type": "stop", "message_id": "m" * 257}), "invalid_frame"),
        (json.dumps({"type": "regenerate", "message_id": "m", "attempt": "1"}), "invalid_frame"),
        (json.dumps({"type": "regenerate", "message_id": "m", "attempt": 0}), "invalid_frame"),
        (json.dumps({"type": "typing", "active": True}), "invalid_frame"),
    ],
)
async def test_bad_frame_is_named_and_the_socket_lives(edge: Edge, text: str | bytes, code: str) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        await client.send_text(text)
        error = await client.receive()
        assert (error["type"], error["code"], error["userid"], error["temporary"]) == ("error", code, "ann", False)
        await client.send(type="message", content="x" * 8000)
        assert (await client.receive())["type"] == "ack"


async def test_frame_over_the_limit_closes_with_1009_and_others_notice_nothing(edge: Edge) -> None:
    ann, bob = await edge.token("ann"), await edge.token("bob")
    async with edge.connect(bob) as other:
        for size in (64 * 1024 + 1, 1024 * 1024):
            async with edge.connect(ann) as client:
                await client.send_text("x" * size)
                assert await client.closed() == 1009
        await other.ping()
