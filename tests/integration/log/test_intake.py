"""The loop around a consumer, on a real log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.support.pipeline import Plug, PluggedLog, until

from duologue.domain.errors import ConsumerRefused, OwnershipLost, StartRefused, StoreUnavailable
from duologue.engines.redis import Redis
from duologue.log.committer import Delivery, Holding
from duologue.log.intake import SPAN, Intake
from duologue.log.port import Log, Partition
from duologue.log.role_tasks import role_tasks
from duologue.log.valkey_streams import open_streams_log

TOPIC = "things"
PARTITION = Partition(TOPIC, 0)


class Recorder:
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.left: list[Holding] = []
        self.gone: list[Holding] = []
        self.commits: list[int] = []

    async def accept(self, deliveries: Sequence[Delivery]) -> None:
        self.deliveries += deliveries

    async def leaving(self, holdings: Sequence[Holding]) -> None:
        self.left += holdings

    def lost(self, holdings: Sequence[Holding]) -> None:
        self.gone += holdings

    def committed(self, partition: Partition, offset: int) -> None:
        self.commits.append(offset)

    @property
    def values(self) -> list[str]:
        return [delivery.record.value.decode() for delivery in self.deliveries]


class Scene:
    """A log, an intake that reads it, and what came of it."""

    def __init__(self, log: Log, redis: Redis, max_undone: int = 100, max_undone_bytes: int = 10_000) -> None:
        self.log = log
        self.redis = redis
        self.commits = Plug()
        self.recorder = Recorder()
        self.intake = Intake(
            PluggedLog(log, self.commits, Plug()),
            topic=TOPIC,
            group="group",
            handler=self.recorder,
            max_undone=max_undone,
            max_undone_bytes=max_undone_bytes,
        )

    async def put(self, *values: str) -> None:
        for value in values:
            await self.log.producer.append(TOPIC, "key", value.encode(), {})

    async def got(self, count: int) -> None:
        await until(lambda: len(self.recorder.deliveries) >= count)


@asynccontextmanager
async def scene(url: str, *, max_undone: int = 100, max_undone_bytes: int = 10_000) -> AsyncIterator[Scene]:
    async with open_streams_log(url, takeover=True) as log, Redis(url, name="test") as redis:
        opened = Scene(log, redis, max_undone, max_undone_bytes)
        task = asyncio.create_task(opened.intake.run())
        await until(lambda: opened.intake.assigned)
        try:
            yield opened
        finally:
            opened.intake.finish()
            await task


async def test_commit_waits_for_everything_before(valkey: str) -> None:
    async with scene(valkey) as opened:
        await opened.put("a", "b", "c")
        await opened.got(3)
        first, second, third = opened.recorder.deliveries
        second.done()
        third.done()
        third.done()
        assert opened.intake.undone == 1
        first.done()
        await until(lambda: opened.recorder.commits == [4])


async def test_what_is_on_the_log_and_not_read_is_counted_also_while_reading_is_paused(valkey: str) -> None:
    async with scene(valkey, max_undone=4) as opened:
        assert (await opened.intake.unread(), opened.intake.owed) == (0, 0)
        await opened.put("a", "b", "c", "d")
        await opened.got(4)
        await until(lambda: opened.intake.owed)
        await opened.put("e", "f")
        assert (await opened.intake.unread(), opened.intake.owed) == (2, 1)
        opened.recorder.deliveries[0].done()
        await opened.got(6)
        assert (await opened.intake.unread(), opened.intake.undone) == (0, 5)
        for delivery in opened.recorder.deliveries:
            delivery.done()
        await until(lambda: not opened.intake.owed)


async def test_reading_is_paused_by_what_records_weigh(valkey: str) -> None:
    async with scene(valkey, max_undone_bytes=100) as opened:
        await opened.put("a" * 90, "b" * 10)
        await opened.got(2)
        await until(lambda: opened.intake.owed)
        await opened.put("c")
        assert (await opened.intake.unread(), opened.intake.undone) == (1, 2)
        opened.recorder.deliveries[0].done()
        await opened.got(3)
        for delivery in opened.recorder.deliveries:
            delivery.done()
        assert all(holding.undone_bytes == 0 for holding in opened.intake.holdings)


async def test_reading_is_paused_by_how_much_is_done_behind_one_that_is_not(valkey: str) -> None:
    async with scene(valkey, max_undone=3) as opened:
        await opened.put("stuck")
        await opened.got(1)
        for number in range(2, SPAN * 3 + 1):
            await opened.put(str(number))
            await opened.got(number)
            opened.recorder.deliveries[-1].done()
        await opened.put("more")
        assert (await opened.intake.unread(), opened.intake.undone) == (1, 1)
        opened.recorder.deliveries[0].done()
        await opened.got(SPAN * 3 + 1)


async def test_finish_commits_what_is_done(valkey: str) -> None:
    async with scene(valkey) as opened:
        await opened.put("a", "b")
        await opened.got(2)
        opened.recorder.deliveries[0].done()
    assert opened.recorder.commits == [2]
    assert [holding.partition for holding in opened.recorder.left] == [PARTITION]
    async with scene(valkey) as again:
        await again.got(1)
        assert again.recorder.values == ["b"]


async def test_full_intake_pauses_until_a_quarter_is_done(valkey: str) -> None:
    async with scene(valkey, max_undone=4) as opened:
        await opened.put("a", "b", "c", "d")
        await opened.got(4)
        await opened.put("e")
        await until(lambda: opened.intake._paused)
        assert len(opened.recorder.deliveries) == 4
        opened.recorder.deliveries[0].done()
        await opened.got(5)


async def test_stopped_intake_reads_nothing_more_and_goes_idle(valkey: str) -> None:
    async with scene(valkey) as opened:
        await opened.put("a")
        await opened.got(1)
        opened.intake.stop()
        await opened.put("b")
        idle = asyncio.create_task(opened.intake.idle())
        opened.recorder.deliveries[0].done()
        await idle
        assert opened.recorder.values == ["a"]


async def test_caught_up_waits_for_what_is_on_the_log_and_not_handed_out(valkey: str) -> None:
    async with scene(valkey, max_undone=2) as opened:
        await opened.intake.caught_up()
        await opened.put("a", "b")
        await opened.got(2)
        await until(lambda: opened.intake._paused)
        await opened.put("c")
        caught_up = asyncio.create_task(opened.intake.caught_up())
        await opened.intake.verify(PARTITION)  # a round trip later than the task's own
        assert not caught_up.done()
        for delivery in opened.recorder.deliveries:
            delivery.done()
        await caught_up
        assert opened.recorder.values == ["a", "b", "c"]


async def test_caught_up_after_the_partitions_are_lost_waits_for_nothing(valkey: str) -> None:
    async with scene(valkey, max_undone=1) as opened:
        await opened.put("a", "b")
        await opened.got(1)
        caught_up = asyncio.create_task(opened.intake.caught_up())
        await opened.intake.verify(PARTITION)
        assert not caught_up.done()
        opened.intake.finish()
        await caught_up


async def test_commit_that_fails_is_repeated(valkey: str) -> None:
    async with scene(valkey) as opened:
        opened.commits.pulled = True
        await opened.put("a")
        await opened.got(1)
        opened.recorder.deliveries[0].done()
        opened.commits.pulled = False
        await until(lambda: opened.recorder.commits == [2])


async def test_verify_by_the_owner_changes_nothing(valkey: str) -> None:
    async with scene(valkey) as opened:
        await opened.put("a", "b")
        await opened.got(2)
        await opened.intake.verify(PARTITION)
        assert int(await opened.redis.call("HGET", f"log:{TOPIC}:cursors", "group")) == 1
        opened.recorder.deliveries[0].done()
        await until(lambda: opened.recorder.commits == [2])
        await opened.intake.verify(PARTITION)


async def test_verify_after_the_lock_was_stolen_tells_and_the_work_is_lost(valkey: str) -> None:
    async with open_streams_log(valkey, takeover=True) as log, Redis(valkey, name="test") as redis:
        opened = Scene(log, redis)
        task = asyncio.create_task(opened.intake.run())
        await until(lambda: opened.intake.assigned)
        await opened.put("a")
        await opened.got(1)
        await redis.call("SET", f"log:{TOPIC}:owner:group", "another", "PX", 60_000)
        with pytest.raises(OwnershipLost):
            await opened.intake.verify(PARTITION)
        await until(lambda: opened.recorder.gone)
        assert not opened.recorder.deliveries[0].held
        assert opened.recorder.left == []
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_second_intake_is_refused_with_its_own_error(valkey: str) -> None:
    async with scene(valkey), open_streams_log(valkey, takeover=False) as log:
        second = Intake(log, topic=TOPIC, group="group", handler=Recorder(), max_undone=1)

        async def run_as_a_role_does() -> None:
            async with role_tasks() as tasks:
                tasks.spawn(asyncio.sleep(3600))
                await second.run()

        with pytest.raises(ConsumerRefused):
            await run_as_a_role_does()


class _Store:
    """A store that is usable once `usable` is set; it counts how often it is asked."""

    def __init__(self) -> None:
        self.usable = False
        self.asked = 0

    async def check(self) -> None:
        self.asked += 1
        if not self.usable:
            raise StoreUnavailable("run `duologue migrate`")


async def test_intake_reads_nothing_and_keeps_nobody_out_until_the_store_is_usable(valkey: str) -> None:
    store, waiting = _Store(), Recorder()
    async with open_streams_log(valkey, takeover=True) as log:
        await log.producer.append(TOPIC, "key", b"a", {})
        intake = Intake(log, topic=TOPIC, group="group", handler=waiting, max_undone=1, check_store=store.check)
        running = asyncio.create_task(intake.run())
        await until(lambda: store.asked >= 3)
        async with scene(valkey) as other:
            await other.got(1)
        assert not intake.assigned
        assert waiting.values == []
        store.usable = True
        await until(lambda: waiting.values == ["a"])
        intake.finish()
        await running


async def test_intake_that_has_begun_does_not_ask_for_the_store_again(valkey: str) -> None:
    store = _Store()
    store.usable = True
    async with open_streams_log(valkey, takeover=True) as log, Redis(valkey, name="test") as redis:
        intake = Intake(log, topic=TOPIC, group="group", handler=Recorder(), max_undone=1, check_store=store.check)
        running = asyncio.create_task(intake.run())
        await until(lambda: intake.assigned)
        store.usable = False
        await redis.call("DEL", f"log:{TOPIC}:owner:group")  # the lock is lost, and then taken again
        await until(lambda: not intake.assigned)
        await until(lambda: intake.assigned)
        assert store.asked == 1
        intake.finish()
        await running


async def test_intake_told_to_finish_while_it_waits_for_the_store_returns(valkey: str) -> None:
    store = _Store()
    async with open_streams_log(valkey, takeover=True) as log:
        intake = Intake(log, topic=TOPIC, group="group", handler=Recorder(), max_undone=1, check_store=store.check)
        running = asyncio.create_task(intake.run())
        await until(lambda: store.asked >= 1)
        intake.finish()
        async with asyncio.timeout(5):
            await running


async def test_intake_whose_store_never_will_be_usable_ends_with_the_reason(valkey: str) -> None:
    async def refuse() -> None:
        raise StartRefused("DATABASE_URL: what is this")

    async with open_streams_log(valkey, takeover=True) as log:
        intake = Intake(log, topic=TOPIC, group="group", handler=Recorder(), max_undone=1, check_store=refuse)
        with pytest.raises(StartRefused, match="DATABASE_URL"):
            await intake.run()
