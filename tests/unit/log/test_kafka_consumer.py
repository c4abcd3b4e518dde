"""What the loop's side of a Kafka consumer makes of changes that it hears of late."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from tests.support.logs import Listener
from tests.support.pipeline import until

from duologue.log.kafka_consumer import KafkaConsumer
from duologue.log.kafka_reader import Revocation
from duologue.log.port import Partition

P = Partition("topic", 0)


async def _no_ends(_: Sequence[Partition]) -> Mapping[Partition, tuple[int, int]]:
    return {}


async def test_partition_gained_again_before_its_loss_was_heard_of_is_owned() -> None:
    """As after a loop that stood still: both changes come at once, and the listener is told of one after the other."""
    listener = Listener()
    consumer = KafkaConsumer({}, topic="topic", prefix="", listener=listener, join_seconds=1.0, ends=_no_ends)
    hearing = asyncio.create_task(consumer._hear_changes())
    consumer.assigned([P], {})
    consumer.revoked(Revocation([P]))
    consumer.assigned([P], {})
    await until(lambda: not consumer._unheard)
    assert listener.events == ["assigned", "revoked", "assigned"]
    assert consumer._owned == {P}
    hearing.cancel()


async def test_partition_gained_before_everything_was_lost_is_not_owned() -> None:
    listener = Listener()
    consumer = KafkaConsumer({}, topic="topic", prefix="", listener=listener, join_seconds=1.0, ends=_no_ends)
    hearing = asyncio.create_task(consumer._hear_changes())
    consumer.assigned([P], {})
    consumer.lost([P])
    await until(lambda: not consumer._unheard)
    assert listener.events == ["assigned", "lost"]
    assert not consumer._owned
    hearing.cancel()
