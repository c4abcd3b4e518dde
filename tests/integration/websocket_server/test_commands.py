"""Stops and regenerations on their way in: what goes on the log, what is refused, and what a repeat is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from tests.integration.store.scenario import add_version, ended
from tests.support.edge import Edge, eventually, running_edge, user
from tests.support.socket_client import Client

from duologue.delivery.load import LoadReport, Standing
from duologue.delivery.names import names_of
from duologue.domain.clock import wall_clock
from duologue.domain.errors import LogUnavailable, StoreUnavailable
from duologue.domain.records import (
    INCOMING_TOPIC,
    IncomingRecord,
    MessageSubmitted,
    RegenerateRequested,
    StopRequested,
)
from duologue.log.port import LogProducer
from duologue.store.deletion import delete_conversation
from duologue.store.messages import Incoming, StoredRequest, store_messages
from duologue.store.outcomes import Outcome, complete
from duologue.store.replies import claim
from duologue.websocket_server import commands
from duologue.websocket_server.connection import MAX_IN_FLIGHT


class Talk:
    """What a user says at a socket, and what an ai-consumer would make of it in the store."""

    def __init__(self, edge: Edge, client: Client) -> None:
        self.edge = edge
        self.client = client
        self._numbers = count(1)

    async def say(self, **fields: Any) -> dict[str, Any]:
        """Send a message; return its `ack`."""
        number = next(self._numbers)
        await self.client.send(type="message", id=f"message {number}", content=f"Hello {number}", **fields)
        return await self.client.until("ack")

    async def stored(self) -> list[StoredRequest]:
        """Store every message that is on the log; return the requests for their answers."""
        messages = [record for record in await self.edge.logged(1) if isinstance(record, MessageSubmitted)]
        batch = [Incoming(record, INCOMING_TOPIC, 0, number) for number, record in enumerate(messages)]
        found = await self.edge.database.write(store_messages, batch, wall_clock())
        return [entry for entry in found if isinstance(entry, StoredRequest)]

    async def asked(self, *, times: int = 1) -> StoredRequest:
        """Say and store something; return the last request."""
        for _ in range(times):
            await self.say()
        return (await self.stored())[-1]

    async def answered(self, state: Outcome = "complete") -> StoredRequest:
        """Say something and end the reply to it."""
        request = await self.asked()
        await self.edge.database.write(_end, request.reply_id, state)
        return request

    async def regenerated(self, request: StoredRequest, *, finished: bool = True) -> None:
        """Let a regeneration take effect."""
        reply_id = await self.edge.database.write(add_version, request, 2, "queued")
        if finished:
            await self.edge.database.write(_end, reply_id, "complete")

    async def commands(self, logged: int) -> list[StopRequested | RegenerateRequested]:
        """Return the stops and regenerations on the log, which has `logged` records altogether."""
        found = await self.edge.logged(logged)
        assert len(found) == logged
        return [record for record in found if not isinstance(record, MessageSubmitted)]

    async def refused(self, **frame: Any) -> str:
        """Send a frame that is refused; return the code."""
        await self.client.send(**frame)
        error = await self.client.receive()
        assert error["type"] == "error"
        assert error.get("id") == frame.get("id")
        assert "message_id" not in error
        assert "event_id" not in error
        return str(error["code"])

    async def forget_notes(self) -> None:
        """Let Redis forget which conversations messages are in."""
        names = names_of(user("ann"))
        for key in await self.edge.streams._redis.call("KEYS", f"{names.note('*')}"):
            await self.edge.streams._redis.call("DEL", key)


def _end(conn: Connection, reply_id: str, state: Outcome) -> None:
    (held,) = claim(conn, [reply_id], "one", wall_clock())
    assert complete(conn, [ended(held, "answer", state)], [], wall_clock())


@pytest.fixture
async def talk(edge: Edge) -> Any:
    async with edge.connect(await edge.token("ann")) as client:
        yield Talk(edge, client)


# Stops


async def test_stop_is_on_the_log_when_it_is_acknowledged(talk: Talk) -> None:
    message = await talk.say()
    await talk.client.send(type="stop", id="s", message_id=message["message_id"])
    ack = await talk.client.receive()
    [record] = await talk.commands(2)
    assert isinstance(record, StopRequested)
    here = talk.client.connection["conversation_id"]
    assert ack == {
        "type": "ack",
        "id": "s",
        "message_id": message["message_id"],
        "conversation_id": here,
        "timestamp": ack["timestamp"],
        "duplicate": False,
    }
    assert (record.user_id, record.message_id, record.conversation_id) == ("ann", message["message_id"], here)
    assert record.uid
    assert record.requested_at > 0


@pytest.mark.parametrize("found_in", ["frame", "note", "store"])
async def test_stop_finds_the_conversation_of_its_message(talk: Talk, found_in: str) -> None:
    await talk.say(character_id="creative")
    (request,) = await talk.stored()
    named = {"conversation_id": request.conversation_id} if found_in == "frame" else {}
    if found_in != "note":
        await talk.forget_notes()
    await talk.client.send(type="stop", id="s", message_id=request.message_id, **named)
    assert (await talk.client.receive())["conversation_id"] == request.conversation_id
    assert request.conversation_id != talk.client.connection["conversation_id"]
    assert [record.conversation_id for record in await talk.commands(2)] == [request.conversation_id]


@pytest.mark.parametrize("kind", ["stop", "regenerate"])
async def test_command_about_what_is_not_the_users_is_refused(talk: Talk, kind: str) -> None:
    request = await talk.answered()
    bob = await talk.edge.token("bob")
    async with talk.edge.connect(bob) as client:
        other = Talk(talk.edge, client)
        for frame in ({}, {"id": "k"}):
            assert await other.refused(type=kind, message_id=request.message_id, **frame) == "message_not_found"
            assert await other.refused(type=kind, message_id="made-up", **frame) == "message_not_found"
        named = {"message_id": request.message_id, "conversation_id": request.conversation_id}
        assert await other.refused(type=kind, id="k", **named) == "conversation_not_found"
        assert await other.refused(type=kind, id="k", **named | {"conversation_id": "x"}) == "conversation_not_found"
    assert await talk.commands(1) == []


@pytest.mark.parametrize("kind", ["stop", "regenerate"])
async def test_command_without_id_is_on_the_log_and_not_acknowledged(talk: Talk, kind: str) -> None:
    request = await talk.answered()
    await talk.client.send(type=kind, message_id=request.message_id)
    await talk.client.send(type=kind, id="k", message_id=request.message_id)
    assert (await talk.client.receive())["id"] == "k"
    assert len(await talk.commands(3)) == 2


async def test_stop_sent_again_is_acknowledged_as_duplicate_and_not_appended(talk: Talk) -> None:
    message = (await talk.say())["message_id"]
    acks = []
    for key in ("s", "s", "another"):
        await talk.client.send(type="stop", id=key, message_id=message)
        acks.append(await talk.client.receive())
        await talk.client.ping()  # by then the note is on its way to Redis, before the next admission
    assert [ack["duplicate"] for ack in acks] == [False, True, False]
    assert {ack["message_id"] for ack in acks} == {message}
    assert len({ack["conversation_id"] for ack in acks}) == 1
    assert len(await talk.commands(3)) == 2


# Regenerations


async def test_regenerate_names_the_attempt_that_is_current_now(talk: Talk) -> None:
    request = await talk.answered()
    await talk.client.send(type="regenerate", id="r", message_id=request.message_id)
    ack = await talk.client.receive()
    assert (ack["type"], ack["id"], ack["message_id"], ack["duplicate"]) == ("ack", "r", request.message_id, False)
    assert ack["conversation_id"] == request.conversation_id
    await talk.regenerated(request)
    await talk.client.send(type="regenerate", id="r2", message_id=request.message_id)
    await talk.client.receive()
    first, second = await talk.commands(3)
    assert isinstance(first, RegenerateRequested)
    assert isinstance(second, RegenerateRequested)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.conversation_id == request.conversation_id
    assert not first.operator


@pytest.mark.parametrize("state", ["failed", "stopped"])
async def test_regenerate_of_a_failed_or_stopped_reply_is_taken(talk: Talk, state: Outcome) -> None:
    request = await talk.answered(state)
    await talk.client.send(type="regenerate", id="r", message_id=request.message_id, attempt=1)
    assert (await talk.client.receive())["type"] == "ack"


async def test_regenerate_while_too_much_waits_is_overloaded_but_not_again_once_accepted_and_a_stop_is_not(
    talk: Talk,
) -> None:
    request = await talk.answered()
    await talk.client.send(type="regenerate", id="r", message_id=request.message_id)
    assert (await talk.client.receive())["type"] == "ack"
    figures = LoadReport(
        consumer="worker",
        partitions=[0],
        waiting=100,
        unread=0,
        slots=1,
        running=1,
        wait_seconds=100.0,
        backlog_seconds=100.0,
        replies_per_second=1.0,
    )
    talk.edge.load.learn([Standing(figures, written_at=1)])
    assert await talk.refused(type="regenerate", id="r2", message_id=request.message_id) == "overloaded"
    for kind, key in (("regenerate", "r"), ("stop", "s")):
        await talk.client.send(type=kind, id=key, message_id=request.message_id)
        ack = await talk.client.receive()
        assert (ack["type"], ack["id"]) == ("ack", key)


async def test_regenerate_of_an_unfinished_reply_is_still_generating_before_it_is_stored_too(talk: Talk) -> None:
    message = (await talk.say())["message_id"]
    assert await talk.refused(type="regenerate", id="r", message_id=message) == "still_generating"
    (request,) = await talk.stored()
    assert await talk.refused(type="regenerate", id="r", message_id=message) == "still_generating"
    await talk.edge.database.write(claim, [request.reply_id], "one", wall_clock())
    assert await talk.refused(type="regenerate", id="r", message_id=message) == "still_generating"
    assert await talk.refused(type="regenerate", id="r", message_id=message, attempt=1) == "still_generating"
    assert await talk.commands(1) == []


async def test_regenerate_in_a_conversation_that_was_deleted_is_message_not_found(talk: Talk) -> None:
    request = await talk.answered()
    uid = request.uid
    await talk.edge.database.write(delete_conversation, uid, request.conversation_id, wall_clock())
    assert await talk.refused(type="regenerate", id="r", message_id=request.message_id) == "message_not_found"


async def test_regenerate_of_another_than_the_last_message_is_not_last(talk: Talk) -> None:
    request = await talk.answered()
    await talk.asked()
    assert await talk.refused(type="regenerate", id="r", message_id=request.message_id) == "not_last"
    assert await talk.refused(type="regenerate", message_id=request.message_id, attempt=1) == "not_last"


async def test_regenerate_of_what_was_never_there_is_message_not_found(talk: Talk) -> None:
    request = await talk.answered()
    async with talk.edge.connect(await _ann_again(talk), "/ws/creative") as client:
        elsewhere = client.connection["conversation_id"]
    for wrong in ({"attempt": 2}, {"conversation_id": elsewhere}):
        frame = {"type": "regenerate", "id": "r", "message_id": request.message_id, **wrong}
        assert await talk.refused(**frame) == "message_not_found"


async def _ann_again(talk: Talk) -> str:
    return talk.edge.external_token("ann")


@pytest.mark.parametrize("finished", [True, False])
async def test_regenerate_of_an_attempt_that_was_replaced_is_appended_and_called_a_duplicate(
    talk: Talk, finished: bool
) -> None:
    request = await talk.answered()
    await talk.regenerated(request, finished=finished)
    await talk.asked()  # nor does it matter that it is no longer the last
    await talk.client.send(type="regenerate", id="r", message_id=request.message_id, attempt=1)
    ack = await talk.client.receive()
    assert (ack["type"], ack["duplicate"]) == ("ack", True)
    [record] = await talk.commands(3)
    assert isinstance(record, RegenerateRequested)
    assert record.attempt == 1


@pytest.mark.parametrize("finished", [True, False])
async def test_regenerate_sent_again_means_the_same_attempt_and_is_not_refused(talk: Talk, finished: bool) -> None:
    request = await talk.answered()
    frame = {"type": "regenerate", "id": "r", "message_id": request.message_id}
    await talk.client.send(**frame)
    first = await talk.client.receive()
    await talk.regenerated(request, finished=finished)
    await talk.client.send(**frame)
    second = await talk.client.receive()
    assert [first["duplicate"], second["duplicate"]] == [False, True]
    assert first["conversation_id"] == second["conversation_id"]
    assert [_attempt(record) for record in await talk.commands(3)] == [1, 1]


def _attempt(record: IncomingRecord) -> int:
    assert isinstance(record, RegenerateRequested)
    return record.attempt


class _Producer:
    """A log whose appends wait for the test, or lose their acknowledgement."""

    def __init__(self) -> None:
        self.log: LogProducer
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.lost = 0

    def wrap(self, log: LogProducer) -> LogProducer:
        self.log = log
        return self

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        await self.go_on.wait()
        await self.log.append(topic, key, value, headers)
        if self.lost:
            self.lost -= 1
            raise LogUnavailable("no acknowledgement came")


async def test_regenerate_that_was_never_acknowledged_means_the_same_attempt_when_it_comes_again_elsewhere(
    valkey: str, tmp_path: Path
) -> None:
    """As after a crash of the server between append and ack: what the first did is known by what was noted before."""
    producer = _Producer()
    async with running_edge(valkey, tmp_path, wrap=producer.wrap) as edge:
        token = await edge.token("ann")
        async with edge.connect(token) as client:
            talk = Talk(edge, client)
            request = await talk.answered()
            frame = {"type": "regenerate", "id": "r", "message_id": request.message_id}
            producer.lost = 1
            assert await talk.refused(**frame) == "service_unavailable"
        await talk.regenerated(request)
        async with edge.connect(token) as client:
            await client.send(**frame)
            assert (await client.receive())["type"] == "ack"
        assert [_attempt(record) for record in await talk.commands(3)] == [1, 1]


async def test_stop_that_was_never_acknowledged_is_appended_again(valkey: str, tmp_path: Path) -> None:
    producer = _Producer()
    async with (
        running_edge(valkey, tmp_path, wrap=producer.wrap) as edge,
        edge.connect(await edge.token("ann")) as client,
    ):
        talk = Talk(edge, client)
        frame = {"type": "stop", "id": "s", "message_id": (await talk.say())["message_id"]}
        producer.lost = 1
        assert await talk.refused(**frame) == "service_unavailable"
        await client.send(**frame)
        assert (await client.receive())["duplicate"] is False
        assert len(await talk.commands(3)) == 2


async def test_regenerate_while_the_store_is_away_is_refused_for_now(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("a secret of the inside")

    request = await talk.answered()
    with monkeypatch.context() as patch:
        patch.setattr(commands, "find_target", away)
        frame = {"type": "regenerate", "id": "r", "message_id": request.message_id}
        assert await talk.refused(**frame) == "service_unavailable"
    await talk.client.send(**frame)
    assert (await talk.client.receive())["type"] == "ack"


# Among other frames


async def test_regenerate_counts_like_a_message_and_a_stop_does_not(valkey: str, tmp_path: Path) -> None:
    async with (
        running_edge(valkey, tmp_path, user_rate_limit_max_requests=2) as edge,
        edge.connect(await edge.token("ann")) as client,
    ):
        talk = Talk(edge, client)
        request = await talk.answered()
        frame = {"type": "regenerate", "message_id": request.message_id, "attempt": 1}
        await client.send(**frame, id="r")
        assert (await client.receive())["type"] == "ack"
        await client.ping()
        await client.send(**frame, id="r2")
        error = await client.receive()
        assert (error["code"], error["id"], error["temporary"]) == ("rate_limited", "r2", True)
        assert error["retry_after"] > 0
        await client.send(**frame, id="r")
        assert (await client.receive())["duplicate"] is True
        for number in range(19):  # twenty altogether, with the repeat
            await client.send(type="stop", id=f"s{number}", message_id=request.message_id)
            assert (await client.receive())["type"] == "ack"
        assert await talk.refused(type="stop", id="one more", message_id=request.message_id) == "rate_limited"


async def test_frames_of_a_socket_are_on_the_log_in_their_order_whatever_they_are(talk: Talk) -> None:
    request = await talk.answered()
    here, about = request.conversation_id, {"message_id": request.message_id, "attempt": 1}
    for number in range(5):
        await talk.client.send(type="regenerate", id=f"r{number}", **about, conversation_id=here)
        await talk.client.send(type="stop", id=f"s{number}", **about, conversation_id=here)
        await talk.client.send(type="message", id=f"m{number}", content="Hello")
    acks = [(await talk.client.until("ack"))["id"] for _ in range(15)]
    assert acks == [f"{kind}{number}" for number in range(5) for kind in "rsm"]
    kinds = [type(record) for record in await talk.edge.logged(16)]
    assert kinds == [MessageSubmitted, *[RegenerateRequested, StopRequested, MessageSubmitted] * 5]


async def test_commands_that_wait_for_the_log_are_bounded_and_seen_through_when_draining(
    valkey: str, tmp_path: Path
) -> None:
    producer = _Producer()
    async with (
        running_edge(valkey, tmp_path, wrap=producer.wrap) as edge,
        edge.connect(await edge.token("ann")) as client,
        edge.connect(await edge.token("bob")) as other,
    ):
        message = (await Talk(edge, client).say())["message_id"]
        producer.go_on.clear()
        for number in range(MAX_IN_FLIGHT + 2):
            await client.send(type="stop", id=f"{number}", message_id=message)
        await eventually(lambda: edge.server.in_flight == MAX_IN_FLIGHT)
        await other.ping()  # by then one more would have begun
        assert edge.server.in_flight == MAX_IN_FLIGHT
        draining = asyncio.create_task(edge.server.drain(10.0))
        await asyncio.sleep(0)  # it has begun
        assert not draining.done()
        producer.go_on.set()
        acks = [(await client.until("ack"))["id"] for _ in range(MAX_IN_FLIGHT)]
        assert acks == [f"{number}" for number in range(MAX_IN_FLIGHT)]
        assert await client.closed() == 1012
        await draining
