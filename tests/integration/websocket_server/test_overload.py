"""Messages that are refused because too much waits: of all, or of one user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.edge import Edge, eventually, running_edge, user

from duologue.delivery.load import LoadBoard, LoadReport
from duologue.delivery.names import names_of
from duologue.delivery.stream import DurableFrame
from duologue.domain.errors import LogUnavailable
from duologue.engines.redis import Redis
from duologue.log.port import LogProducer


async def report(redis: Redis, wait_seconds: float) -> None:
    await LoadBoard(redis).report(
        LoadReport(
            consumer="worker",
            partitions=[0],
            waiting=0,
            unread=0,
            slots=8,
            running=8,
            wait_seconds=wait_seconds,
            backlog_seconds=75.0,
            replies_per_second=100.0,
        )
    )


def refusing(edge: Edge) -> bool:
    return edge.load.allowance("any").messages == 0


async def say(client: Any, key: str) -> dict[str, Any]:
    await client.send(type="message", id=key, content="Hello")
    frame: dict[str, Any] = await client.receive()
    assert frame["id"] == key
    return frame


async def test_message_past_the_limit_is_refused_and_an_accepted_one_sent_again_is_not(edge: Edge, valkey: str) -> None:
    async with Redis(valkey, name="figures") as redis, edge.connect(await edge.token("ann")) as client:
        assert (await say(client, "one"))["type"] == "ack"
        await eventually(lambda: not refusing(edge))
        await report(redis, 75.0)
        await eventually(lambda: refusing(edge))

        refused = await say(client, "two")
        again = await say(client, "one")
        await report(redis, 5.0)
        await eventually(lambda: not refusing(edge))
        accepted = await say(client, "two")

    assert (refused["type"], refused["code"], refused["temporary"]) == ("error", "overloaded", True)
    assert refused["retry_after"] == 30.0
    assert (again["type"], again["duplicate"]) == ("ack", True)
    assert (accepted["type"], accepted["duplicate"]) == ("ack", False)
    assert [record.client_id for record in await edge.records(3)] == ["one", "one", "two"]


async def test_user_with_too_many_messages_without_outcome_is_refused_until_one_has_ended(
    valkey: str, tmp_path: Path
) -> None:
    async with (
        running_edge(valkey, tmp_path, user_max_pending=2) as edge,
        edge.connect(await edge.token("ann")) as client,
        edge.connect(await edge.token("bob")) as other,
    ):
        acks = [await say(client, key) for key in ("one", "two")]
        refused = await say(client, "three")
        assert (refused["code"], refused["temporary"], refused["retry_after"]) == ("overloaded", True, 5.0)
        assert (await say(other, "four"))["type"] == "ack"

        outcome = b'{"type":"response","message_id":"m"}'
        frame = DurableFrame("response", acks[0]["message_id"], 1, outcome, b'{"type":"typing"}')
        await edge.streams.apply(user("ann"), [frame])
        assert (await client.until("response"))["message_id"] == "m"
        assert (await say(client, "three"))["type"] == "ack"


async def test_user_with_messages_waiting_is_refused_while_another_is_not(edge: Edge, valkey: str) -> None:
    async with (
        Redis(valkey, name="figures") as redis,
        edge.connect(await edge.token("ann")) as client,
        edge.connect(await edge.token("bob")) as other,
    ):
        await report(redis, 25.0)
        await eventually(lambda: edge.load.allowance("any").messages == 2)
        assert [(await say(client, key))["type"] for key in ("one", "two", "three")] == ["ack", "ack", "error"]
        assert (await say(other, "four"))["type"] == "ack"


class _Refusing:
    """A log that takes nothing while it is told to."""

    def __init__(self, producer: LogProducer) -> None:
        self._producer = producer
        self.away = False

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        if self.away:
            raise LogUnavailable("it is away")
        await self._producer.append(topic, key, value, headers)


async def test_message_that_the_log_has_not_taken_does_not_count_as_one_without_outcome(
    valkey: str, tmp_path: Path
) -> None:
    producers: list[_Refusing] = []

    def wrap(producer: LogProducer) -> LogProducer:
        producers.append(_Refusing(producer))
        return producers[0]

    async with (
        running_edge(valkey, tmp_path, wrap=wrap, user_max_pending=1) as edge,
        Redis(valkey, name="keys") as redis,
        edge.connect(await edge.token("ann")) as client,
    ):
        producers[0].away = True
        assert [(await say(client, key))["code"] for key in ("one", "two")] == ["service_unavailable"] * 2
        assert await redis.call("EXISTS", names_of(user("ann")).pending) == 0
        producers[0].away = False
        assert (await say(client, "one"))["type"] == "ack"
        assert (await say(client, "two"))["code"] == "overloaded"
