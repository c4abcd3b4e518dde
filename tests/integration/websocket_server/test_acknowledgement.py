"""What an acknowledgement promises, and what is told when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.support.edge import Edge, eventually, running_edge

from duologue.domain.errors import LogUnavailable
from duologue.log.port import LogProducer
from duologue.websocket_server.connection import MAX_IN_FLIGHT


class _Producer:
    """A log whose appends wait for the test, or fail as it says."""

    def __init__(self) -> None:
        self.log: LogProducer
        self.appending = asyncio.Event()
        self.go_on = asyncio.Event()
        self.failures: list[Exception] = []

    def wrap(self, log: LogProducer) -> LogProducer:
        self.log = log
        return self

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        self.appending.set()
        if self.failures:
            raise self.failures.pop()
        await self.go_on.wait()
        await self.log.append(topic, key, value, headers)


async def test_message_is_not_acknowledged_before_the_log_has_it(valkey: str, tmp_path: Path) -> None:
    producer = _Producer()
    async with (
        running_edge(valkey, tmp_path, wrap=producer.wrap) as edge,
        edge.connect(await edge.token("ann")) as client,
    ):
        await client.send(type="message", id="one", content="Hello")
        await producer.appending.wait()
        await client.send(type="ping", id="after")
        first = await client.receive()
        producer.go_on.set()
        assert first["type"] == "pong"
        ack = await client.receive()
        assert (ack["type"], ack["id"]) == ("ack", "one")


async def test_messages_of_one_socket_that_wait_for_the_log_are_bounded_and_all_acknowledged_in_order(
    valkey: str, tmp_path: Path
) -> None:
    producer = _Producer()
    async with (
        running_edge(valkey, tmp_path, wrap=producer.wrap) as edge,
        edge.connect(await edge.token("ann")) as client,
        edge.connect(await edge.token("bob")) as other,
    ):
        for number in range(MAX_IN_FLIGHT + 8):
            await client.send(type="message", id=f"{number}", content="Hello")
        await eventually(lambda: edge.server.in_flight == MAX_IN_FLIGHT)
        await other.ping()  # by then one more would have begun
        most = edge.server.in_flight
        producer.go_on.set()
        acks = [(await client.until("ack"))["id"] for _ in range(MAX_IN_FLIGHT + 8)]
        assert most == MAX_IN_FLIGHT
        assert acks == [f"{number}" for number in range(MAX_IN_FLIGHT + 8)]


async def test_message_that_comes_while_its_server_drains_is_left_to_the_next_one(valkey: str, tmp_path: Path) -> None:
    producer = _Producer()
    async with (
        running_edge(valkey, tmp_path, wrap=producer.wrap) as edge,
        edge.connect(await edge.token("ann")) as client,
    ):
        await client.send(type="message", id="one", content="Hello")
        await producer.appending.wait()
        draining = asyncio.create_task(edge.server.drain(10.0))
        await asyncio.sleep(0)  # it has begun
        await client.send(type="message", id="two", content="Hello")
        await client.ping()
        taken = edge.server.in_flight
        producer.go_on.set()
        assert taken == 1
        assert (await client.receive())["id"] == "one"
        assert await client.closed() == 1012
        await draining


async def test_message_that_the_log_did_not_take_is_refused_and_no_duplicate_when_it_comes_again(
    valkey: str, tmp_path: Path
) -> None:
    producer = _Producer()
    producer.go_on.set()
    producer.failures = [LogUnavailable("no acknowledgement came")]
    async with (
        running_edge(valkey, tmp_path, wrap=producer.wrap) as edge,
        edge.connect(await edge.token("ann")) as client,
    ):
        await client.send(type="message", id="one", content="Hello")
        error = await client.receive()
        assert (error["code"], error["id"], error["temporary"]) == ("service_unavailable", "one", True)
        assert error["retry_after"] > 0
        assert "message_id" not in error
        await client.send(type="message", id="one", content="Hello")
        ack = await client.receive()
        assert (ack["type"], ack["id"], ack["duplicate"]) == ("ack", "one", False)
        assert len(await edge.records(1)) == 1


async def test_failure_that_nobody_expected_is_told_with_its_correlation_id_and_the_socket_lives(
    valkey: str, tmp_path: Path
) -> None:
    producer = _Producer()
    producer.go_on.set()
    producer.failures = [RuntimeError("a secret of the inside")]
    async with (
        running_edge(valkey, tmp_path, wrap=producer.wrap) as edge,
        edge.connect(await edge.token("ann")) as client,
    ):
        await client.send(type="message", id="one", content="Hello")
        error = await client.receive()
        assert (error["code"], error["id"], error["temporary"]) == ("internal_error", "one", True)
        assert error["correlation_id"]
        assert "secret" not in error["message"]
        await client.send(type="message", id="two", content="Hello")
        assert (await client.receive())["id"] == "two"


async def test_connecting_that_fails_unexpectedly_is_told_and_closes_with_1013(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    token = await edge.token("ann")
    with monkeypatch.context() as patch:
        patch.setattr(edge.hub, "attach", broken)
        async with edge.connect(token, greeted=False) as client:
            error = await client.receive()
            assert (error["code"], error["temporary"]) == ("internal_error", True)
            assert error["correlation_id"]
            assert "secret" not in error["message"]
            assert await client.closed() == 1013
    async with edge.connect(token) as client:
        await client.ping()


@pytest.mark.parametrize("path", ["/ws", "/ws/creative"])
async def test_frame_sent_again_over_another_connection_is_the_same_message(edge: Edge, path: str) -> None:
    token = await edge.token("ann")
    acks = []
    for each in ("/ws", path):
        async with edge.connect(token, each, conversation_id="new") as client:
            await client.send(type="message", id="one", content="Hello", metadata={"try": each})
            acks.append(await client.receive())
    assert acks[0]["message_id"] == acks[1]["message_id"]
    assert acks[0]["conversation_id"] != acks[1]["conversation_id"]
    assert [record.message_id for record in await edge.records(2)] == [ack["message_id"] for ack in acks]


async def test_frames_that_differ_or_are_another_users_are_different_messages(edge: Edge) -> None:
    frames: list[dict[str, str]] = [
        {"id": "one", "content": "Hello"},
        {"id": "two", "content": "Hello"},
        {"id": "one", "content": "Goodbye"},
    ]
    ids = set()
    for name in ("ann", "bob"):
        async with edge.connect(await edge.token(name)) as client:
            here = client.connection["conversation_id"]
            for frame in (*frames, {**frames[0], "conversation_id": here}):
                await client.send(type="message", **frame)
                ids.add((await client.receive())["message_id"])
    assert len(ids) == 8


async def _conversations(edge: Edge, connect: Callable[[AsyncExitStack], list[asyncio.Task[str]]]) -> set[str]:
    async with AsyncExitStack() as stack:
        return set(await asyncio.gather(*connect(stack)))


async def test_users_first_connections_made_at_once_share_one_conversation(edge: Edge) -> None:
    token = edge.external_token("carol")  # so that the user is made by them, too

    async def conversation(stack: AsyncExitStack) -> str:
        client = await stack.enter_async_context(edge.connect(token))
        return str(client.connection["conversation_id"])

    found = await _conversations(edge, lambda stack: [asyncio.create_task(conversation(stack)) for _ in range(8)])
    assert len(found) == 1


async def test_first_frames_to_a_character_sent_at_once_share_one_conversation(edge: Edge) -> None:
    token = await edge.token("ann")

    async def conversation(stack: AsyncExitStack) -> str:
        client = await stack.enter_async_context(edge.connect(token))
        await client.send(type="message", content="Hello", character_id="creative")
        return str((await client.until("ack"))["conversation_id"])

    found = await _conversations(edge, lambda stack: [asyncio.create_task(conversation(stack)) for _ in range(8)])
    assert len(found) == 1
    async with edge.connect(token, "/ws/creative") as client:
        assert {client.connection["conversation_id"]} == found
