"""Who owns a partition of Kafka's, and what it takes over: processes that die, hang and leave; many under load."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from tests.support.kafka_member import member
from tests.support.logs import append_until_acknowledged, ends, read, reading
from tests.support.owner import Owner
from tests.support.pipeline import until

from duologue.cluster.kafka import KafkaServer
from duologue.log.committer import Delivery, Holding
from duologue.log.intake import Intake
from duologue.log.kafka import KafkaLog, open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import Partition

TOPIC = "incoming_messages"


async def test_member_killed_is_succeeded_after_its_session_from_its_commit(
    log: KafkaLog, options: KafkaOptions
) -> None:
    loop, owner = asyncio.get_running_loop(), Owner()
    async with member(options, TOPIC) as other:
        await other.until("assigned")
        await append(log, range(20))
        await other.until_read(20)
        other.ask_to_commit()
        await other.until("committed")
        await append(log, range(20, 40))
        await other.until_read(20)
        async with reading(log, TOPIC, listener=owner) as consumer:
            await owner.until(lambda owned: len(owned) == 2)
            other.send(signal.SIGKILL)
            killed_at = loop.time()
            await owner.until(lambda owned: len(owned) == 4)
            took = loop.time() - killed_at
            values = {record.value.decode() for record in await read(consumer, 20)}
    assert values == {str(n) for n in range(20, 40)}
    assert options.session_timeout_seconds - 2.0 < took < options.session_timeout_seconds + 3.0


async def test_member_leaving_is_succeeded_at_once(log: KafkaLog, options: KafkaOptions) -> None:
    loop, owner = asyncio.get_running_loop(), Owner()
    async with member(options, TOPIC) as other:
        await other.until("assigned")
        async with reading(log, TOPIC, listener=owner):
            await owner.until(lambda owned: len(owned) == 2)
            other.send(signal.SIGTERM)
            await other.until("revoked")
            left_at = loop.time()
            await owner.until(lambda owned: len(owned) == 4)
            assert loop.time() - left_at < options.session_timeout_seconds / 2
    assert "lost" not in [event for event, *_ in other.told]


async def test_member_that_hung_for_longer_than_its_session_commits_nothing_and_joins_again(
    log: KafkaLog, options: KafkaOptions
) -> None:
    options = replace(options, session_timeout_seconds=2.0)
    owner = Owner()
    async with member(options, TOPIC) as other:
        await other.until("assigned")
        await append(log, range(20))
        await other.until_read(20)
        other.send(signal.SIGSTOP)
        async with reading(log, TOPIC, listener=owner) as consumer:
            await owner.until(lambda owned: len(owned) == 4)
            records = await read(consumer, 20)
            halves = ends(records[:10])
            await consumer.commit(halves)
            other.ask_to_commit()  # it reads this first when it goes on, believing that it owns everything
            other.send(signal.SIGCONT)
            assert await other.until("refused")
            await other.until("assigned")
            await owner.until(lambda owned: len(owned) == 2)
            assert "lost" in [event for event, *_ in other.told]
            assert "committed" not in [event for event, *_ in other.told]
        other.send(signal.SIGTERM)
        await other.until("revoked")
    async with reading(log, TOPIC) as consumer:
        again = {(record.partition, record.offset) for record in await read(consumer, len(records) - 10)}
    taken = {(record.partition, record.offset) for record in records if record.offset < halves.get(record.partition, 0)}
    assert again.isdisjoint(taken)


class Ledger:
    """What several intakes did to one topic: who holds what, what is done, and what was committed."""

    def __init__(self) -> None:
        self.holders: list[Hand] = []
        self.handed_out: set[bytes] = set()
        self.done: dict[Partition, set[int]] = {}
        self.committed: dict[Partition, int] = {}
        self.lost: list[Partition] = []
        self.wrong: list[str] = []

    def take(self, hand: Hand, delivery: Delivery) -> None:
        partition = delivery.record.partition
        others = [other for other in self.holders if other is not hand]
        if any(holding.partition == partition for other in others for holding in other.intake.holdings):
            self.wrong.append(f"{partition} has two owners")
        self.handed_out.add(delivery.record.value)

    def has_handed_out(self, count: int) -> bool:
        return len(self.handed_out) >= count

    def finish(self, delivery: Delivery) -> None:
        self.done.setdefault(delivery.record.partition, set()).add(delivery.record.offset)
        delivery.done()

    def commit(self, partition: Partition, offset: int) -> None:
        missing = set(range(self.committed.get(partition, 0), offset)) - self.done.get(partition, set())
        if missing:
            self.wrong.append(f"{partition} was committed up to {offset} without {sorted(missing)}")
        if offset < self.committed.get(partition, 0):
            self.wrong.append(f"{partition} was committed back to {offset}")
        self.committed[partition] = offset


class Hand:
    """A handler whose records take different times, so that they are done out of order."""

    def __init__(self, log: KafkaLog, ledger: Ledger, seed: int) -> None:
        self.intake = Intake(log, topic=TOPIC, group="group", handler=self, max_undone=100)
        self._ledger = ledger
        self._random = random.Random(seed)  # no secret
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._ledger.take(self, delivery)
            task = asyncio.create_task(self._work(delivery, self._random.expovariate(1 / 0.03)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def leaving(self, holdings: Sequence[Holding]) -> None:
        await asyncio.sleep(0.01)  # the write that marks what it leaves

    def lost(self, holdings: Sequence[Holding]) -> None:
        self._ledger.lost += [holding.partition for holding in holdings]

    def committed(self, partition: Partition, offset: int) -> None:
        self._ledger.commit(partition, offset)

    async def _work(self, delivery: Delivery, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if delivery.held:
            self._ledger.finish(delivery)


@asynccontextmanager
async def hand(options: KafkaOptions, ledger: Ledger, seed: int) -> AsyncIterator[Hand]:
    async with open_kafka_log(options) as log:
        opened = Hand(log, ledger, seed)
        ledger.holders.append(opened)
        running = asyncio.create_task(opened.intake.run())
        try:
            yield opened
        finally:
            opened.intake.finish()
            await running
            ledger.holders.remove(opened)


async def test_members_coming_and_going_under_load_own_alone_and_commit_only_what_is_done(
    log: KafkaLog, options: KafkaOptions
) -> None:
    ledger, total, ended = Ledger(), 0, False

    async def load() -> None:
        nonlocal total
        while not ended:
            await log.producer.append(TOPIC, str(total % 50), str(total).encode(), {})
            total += 1

    async with hand(options, ledger, 0) as first:
        loading = asyncio.create_task(load())
        for seed in (1, 2, 3):
            async with hand(options, ledger, seed) as second:
                await until_shared(first, second)
                await until(partial(ledger.has_handed_out, total + 200))
        ended = True
        await loading
        await until(lambda: len(first.intake.holdings) == 4)
        await first.intake.caught_up()
        await first.intake.idle()
    async with reading(log, TOPIC) as consumer:
        assert await consumer.unread() == {}
    assert (ledger.wrong, ledger.lost) == ([], [])
    assert ledger.handed_out == {str(n).encode() for n in range(total)}


async def test_kafka_that_hangs_for_longer_than_the_sessions_loses_nothing_and_is_gone_on_with(
    kafka: KafkaServer, log: KafkaLog, options: KafkaOptions
) -> None:
    ledger = Ledger()
    options = replace(options, session_timeout_seconds=2.0)
    async with hand(options, ledger, 0) as first, hand(options, ledger, 1) as second:
        await until_shared(first, second)
        await append(log, range(200))
        await until(partial(ledger.has_handed_out, 100))
        kafka.pause()
        await until(lambda: len(ledger.lost) == 4)  # nobody may go on with what another may have
        kafka.resume()
        await append(log, range(200, 300))
        await until(partial(ledger.has_handed_out, 300))
        await until_shared(first, second)
        for each in (first, second):
            await each.intake.caught_up()
            await each.intake.idle()
    async with reading(log, TOPIC) as consumer:
        assert await consumer.unread() == {}
    assert ledger.wrong == []


async def until_shared(first: Hand, second: Hand) -> None:
    await until(lambda: {len(first.intake.holdings), len(second.intake.holdings)} == {2})


async def append(log: KafkaLog, numbers: range) -> None:
    await asyncio.gather(*(append_until_acknowledged(log, TOPIC, str(n), str(n).encode()) for n in numbers))
