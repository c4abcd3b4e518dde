from __future__ import annotations

import asyncio

import pytest

from duologue.client.event_feed import ConnectionEnded, EventFeed
from duologue.client.events import Closed, Connecting, Event, Received


async def test_subscriber_gets_events_from_its_subscription_on_until_closed() -> None:
    feed = EventFeed()
    await feed.publish(Connecting())
    async with feed.events() as events:
        await feed.publish(Received({"type": "pong"}, None))
        await feed.publish(Closed(1000, ""))
        assert [event async for event in events] == [Received({"type": "pong"}, None), Closed(1000, "")]


async def test_subscriber_that_does_not_read_holds_the_publisher_until_it_leaves() -> None:
    feed = EventFeed()
    async with feed.events():
        publishing = asyncio.create_task(_publish(feed, 1500))
        await asyncio.sleep(0)
        assert not publishing.done()
    await asyncio.wait_for(publishing, 5)


async def _publish(feed: EventFeed, count: int) -> None:
    for _ in range(count):
        await feed.publish(Connecting())


async def test_last_event_reaches_a_subscriber_whose_queue_is_full() -> None:
    feed = EventFeed()
    async with feed.events() as events:
        await _publish(feed, 1000)
        feed.publish_last(Closed(1000, ""))
        received = [event async for event in events]
    assert received[-1] == Closed(1000, "")
    assert len(received) == 1000


async def test_wait_ends_with_the_event_that_fulfils_it() -> None:
    seen: list[Event] = []
    feed = EventFeed(seen.append)
    waiting = asyncio.create_task(feed.until(lambda: len(seen) == 2, timeout_seconds=5))
    await _publish(feed, 2)
    await waiting


async def test_wait_after_the_end_fails_unless_it_is_fulfilled() -> None:
    feed = EventFeed()
    waiting = asyncio.create_task(feed.until(lambda: False, timeout_seconds=5))
    await asyncio.sleep(0)
    feed.end("it is over")
    with pytest.raises(ConnectionEnded, match="over"):
        await waiting
    with pytest.raises(ConnectionEnded, match="over"):
        await feed.until(lambda: False, timeout_seconds=5)
    await feed.until(lambda: True, timeout_seconds=5)
