"""What users are told of messages that wait: places, times, and how often."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from duologue.ai_consumer.dispatcher import Dispatcher
from duologue.ai_consumer.queue_notices import REFRESH_SECONDS, REPEAT_SECONDS, SLICE, QueueNotices
from duologue.ai_consumer.request import Request
from duologue.ai_consumer.service_times import ServiceTimes
from duologue.delivery.stream import UserStreams
from duologue.domain.ids import UserKey
from duologue.domain.records import MessageSubmitted
from duologue.log.committer import Delivery, Holding
from duologue.log.port import LogRecord, Partition

SECONDS = 10.0
PARTITION = Partition("incoming_messages", 0)
HOLDING = Holding(PARTITION, lambda: None)


class Told(UserStreams):
    """Streams that keep what is published."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def publish(self, user: UserKey, *frames: bytes) -> asyncio.Future[Any]:
        self.frames += map(json.loads, frames)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(1)
        return done

    def places(self) -> dict[str, int]:
        return {frame["message_id"]: frame["position"] for frame in self.frames}

    def waits(self) -> dict[str, float]:
        return {frame["message_id"]: round(frame["eta_ms"] / 1000, 1) for frame in self.frames}


class Queue:
    """A dispatcher whose replies take `SECONDS`, and the notices of what waits in it."""

    def __init__(self, *, slots: int = 1, slots_per_user: int = 4) -> None:
        self.times = ServiceTimes()
        for _ in range(200):
            self.times.began("past", "", 0.0)
            self.times.ended("past", SECONDS)
        self.dispatcher: Dispatcher[Request] = Dispatcher(max_running=slots, max_running_per_user=slots_per_user)
        self.told = Told()
        self.notices = QueueNotices(self.dispatcher, self.told, self.times, slots=slots, slots_per_user=slots_per_user)
        self.count = 0

    def add(self, user: str, conversation: str, message: str = "") -> Request:
        self.count += 1
        record = MessageSubmitted(
            tenant="default",
            user_id=user,
            uid=user,
            message_id=message or f"m{self.count}",
            conversation_id=f"{user}-{conversation}",
            client_id="c",
            content="",
            submitted_at=0,
            correlation_id="c",
        )
        read = LogRecord(PARTITION, self.count, "", b"", {}, 0)
        request = Request(Delivery(read, HOLDING), record)
        self.dispatcher.add(request)
        return request

    def start(self, now: float) -> list[Request]:
        taken = self.dispatcher.take()
        for request in taken:
            self.times.began(request, "", now)
        return taken

    async def sweep(self, now: float, most: int = 1000) -> list[dict[str, Any]]:
        before = len(self.told.frames)
        await self.notices.sweep(now, most)
        return self.told.frames[before:]


async def test_message_that_waits_only_for_a_moment_is_not_told() -> None:
    queue = Queue()
    queue.add("ann", "a")
    assert await queue.sweep(100.0) == []
    queue.start(100.1)
    assert await queue.sweep(100.25) == []


async def test_messages_of_several_users_have_places_one_after_the_other_and_times_by_the_slots() -> None:
    queue = Queue(slots=2)
    for user in ("x", "y", "ann", "bob", "cem"):
        queue.add(user, "c", user)
    queue.start(100.0)
    queue.add("ann", "d", "ann-2")
    await queue.sweep(100.0)
    await queue.sweep(100.25)

    assert queue.told.places() == {"ann": 1, "bob": 2, "cem": 3, "ann-2": 4}
    assert queue.told.waits() == {"ann": 5.0, "bob": 10.0, "cem": 15.0, "ann-2": 20.0}


async def test_message_behind_others_of_its_conversation_waits_for_them_though_slots_are_free() -> None:
    queue = Queue(slots=100)
    queue.add("ann", "a", "running")
    queue.start(100.0)
    queue.add("ann", "a", "next")
    queue.add("ann", "a", "last")
    await queue.sweep(103.75)
    await queue.sweep(104.0)

    assert queue.told.places() == {"next": 1, "last": 2}
    assert queue.told.waits() == {"next": 6.0, "last": 16.0}  # the running one has taken 4 of 10 s


async def test_message_of_a_user_at_their_limit_waits_for_their_own_replies_though_slots_are_free() -> None:
    queue = Queue(slots=100, slots_per_user=2)
    for number in range(5):
        queue.add("ann", str(number), str(number))
    assert len(queue.start(100.0)) == 2
    await queue.sweep(100.0)
    await queue.sweep(100.25)

    assert queue.told.waits() == {"2": 5.0, "3": 10.0, "4": 15.0}


async def test_place_is_told_again_when_it_changes_and_at_most_every_two_seconds() -> None:
    queue = Queue()
    first, second = queue.add("ann", "a", "first"), queue.add("bob", "b", "second")
    queue.add("cem", "c", "third")
    queue.start(100.0)
    await queue.sweep(100.0)
    assert len(await queue.sweep(100.25)) == 2

    queue.dispatcher.finished(first)
    assert queue.start(100.3) == [second]
    assert await queue.sweep(100.5) == []
    (frame,) = await queue.sweep(100.25 + REPEAT_SECONDS)
    assert (frame["message_id"], frame["position"]) == ("third", 1)


async def test_place_that_stays_is_told_again_after_a_while_for_devices_that_have_come() -> None:
    queue = Queue()
    queue.add("ann", "a")
    queue.add("bob", "b")
    queue.start(100.0)
    await queue.sweep(100.0)
    assert len(await queue.sweep(101.0)) == 1
    assert await queue.sweep(101.0 + REPEAT_SECONDS) == []
    assert len(await queue.sweep(101.0 + REFRESH_SECONDS)) == 1


async def test_sweep_with_more_to_tell_than_it_may_takes_turns() -> None:
    queue = Queue()
    for number in range(7):
        queue.add(f"user-{number}", "c", str(number))
    await queue.sweep(100.0)
    told = [frame["message_id"] for second in range(3) for frame in await queue.sweep(101.0 + second, most=3)]
    assert sorted(told[:7]) == [str(number) for number in range(7)]


async def test_sweep_over_twenty_thousand_lets_the_event_loop_go_on() -> None:
    queue = Queue(slots=64)
    for number in range(20_000):
        queue.add(f"user-{number % 500}", str(number % 3))
    ticks, over = 0, False

    async def tick() -> None:
        nonlocal ticks
        while not over:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await queue.sweep(100.0)
    await queue.sweep(102.0, most=500)
    over = True
    await ticking

    assert len(queue.told.frames) == 500
    assert ticks >= 20_000 // SLICE
