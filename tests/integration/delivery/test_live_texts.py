"""Rule Live text: which deltas are taken, which are refused, and what those who attach later see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.integration.delivery.support import ALICE, delta, failure, open_streams, response

from duologue.delivery.names import names_of
from duologue.delivery.publication import parse
from duologue.delivery.stream import UserStreams
from duologue.engines.redis import Redis, Subscription

TAG = names_of(ALICE).tag
Opened = tuple[UserStreams, Redis]


@pytest.fixture
async def opened(valkey: str) -> AsyncIterator[Opened]:
    async with open_streams(valkey) as pair:
        yield pair


async def _append(streams: UserStreams, seq: int, content: str, *, attempt: int = 1, from_seq: int = 0) -> bool:
    frame = delta("m", seq, content, attempt)
    return bool(await streams.append_live(ALICE, "m", attempt, from_seq or seq, seq, content, frame))


async def _open(streams: UserStreams, attempt: int = 1) -> bool:
    return bool(await streams.open_live(ALICE, "m", "c", attempt, None))


async def _snapshots(streams: UserStreams) -> list[dict[str, Any]]:
    return [json.loads(live) for live in (await streams.attach(ALICE, None)).lives]


async def test_snapshot_of_an_open_text_has_all_pieces_so_far(opened: Opened) -> None:
    streams, _ = opened
    await _open(streams)
    assert await _append(streams, 1, "Grüße, ")
    assert await _append(streams, 4, '"Ada" 🙂', from_seq=2)

    assert await _snapshots(streams) == [
        {
            "type": "snapshot",
            "message_id": "m",
            "conversation_id": "c",
            "attempt": 1,
            "seq": 4,
            "content": 'Grüße, "Ada" 🙂',
        }
    ]


async def test_snapshot_of_a_text_just_opened_is_empty(opened: Opened) -> None:
    streams, _ = opened
    await _open(streams)

    (snapshot,) = await _snapshots(streams)
    assert (snapshot["seq"], snapshot["content"]) == (0, "")


async def test_delta_of_a_text_never_opened_is_refused(opened: Opened) -> None:
    streams, _ = opened

    assert not await _append(streams, 1, "x")
    assert await _snapshots(streams) == []


@pytest.mark.parametrize("from_seq", [1, 3])
async def test_delta_that_does_not_follow_is_refused(opened: Opened, from_seq: int) -> None:
    streams, _ = opened
    await _open(streams)
    await _append(streams, 1, "a")

    assert not await _append(streams, from_seq, "b")
    assert (await _snapshots(streams))[0]["content"] == "a"


async def test_delta_of_a_worker_whose_attempt_is_superseded_is_refused(opened: Opened) -> None:
    streams, _ = opened
    await _open(streams, 1)
    await _append(streams, 1, "old")
    await _open(streams, 2)

    assert not await _append(streams, 2, "stale", attempt=1)
    assert not await _open(streams, 1)
    assert await _append(streams, 1, "new", attempt=2)
    assert (await _snapshots(streams))[0]["content"] == "new"


async def test_delta_of_an_attempt_not_yet_opened_is_refused(opened: Opened) -> None:
    streams, _ = opened
    await _open(streams, 1)

    assert not await _append(streams, 1, "x", attempt=2)


@pytest.mark.parametrize("outcome", [response("m"), failure("m")], ids=["response", "failure"])
async def test_delta_after_the_end_is_refused_and_so_is_opening(opened: Opened, outcome: Any) -> None:
    streams, _ = opened
    await _open(streams)
    await _append(streams, 1, "a")
    await streams.apply(ALICE, [outcome])

    assert not await _append(streams, 2, "late")
    assert not await _open(streams)
    assert not await streams.reopen_live(ALICE, "m", "c", 1, 2, "a late")
    assert await _snapshots(streams) == []


async def test_opening_after_a_repeated_outcome_is_refused_though_the_first_end_is_forgotten(opened: Opened) -> None:
    streams, redis = opened
    await streams.apply(ALICE, [response("m")])
    await redis.call("DEL", f"ended:{TAG}:m")

    await streams.apply(ALICE, [response("m")])

    assert not await _open(streams)


async def test_opening_a_regeneration_after_the_end_is_taken(opened: Opened) -> None:
    streams, _ = opened
    await _open(streams)
    await streams.apply(ALICE, [response("m", 1)])

    assert await _open(streams, 2)
    assert await _append(streams, 1, "again", attempt=2)


async def test_repeated_outcome_leaves_the_text_of_a_later_attempt_open(opened: Opened) -> None:
    streams, _ = opened
    await streams.apply(ALICE, [response("m", 1)])
    await _open(streams, 2)
    await _append(streams, 1, "again", attempt=2)

    await streams.apply(ALICE, [response("m", 1)])

    assert await _append(streams, 2, "!", attempt=2)


async def test_repeated_outcome_of_an_earlier_attempt_does_not_reopen_what_a_later_one_ended(opened: Opened) -> None:
    streams, _ = opened
    await streams.apply(ALICE, [response("m", 1), response("m", 3)])

    await streams.apply(ALICE, [response("m", 1)])

    assert not await _open(streams, 2)
    assert not await _open(streams, 3)
    assert await _open(streams, 4)


async def test_opening_twice_is_taken_until_the_text_has_begun(opened: Opened) -> None:
    streams, _ = opened
    assert await _open(streams)
    assert await _open(streams)
    await _append(streams, 1, "a")

    assert not await _open(streams)
    assert (await _snapshots(streams))[0]["content"] == "a"


async def test_reopening_replaces_the_text_and_goes_on_from_its_seq(opened: Opened) -> None:
    streams, redis = opened
    await _open(streams)
    await redis.call("FLUSHALL")
    assert not await _append(streams, 1, "a")

    assert await streams.reopen_live(ALICE, "m", "c", 1, 7, "all of it")

    assert await _append(streams, 8, " and more")
    (snapshot,) = await _snapshots(streams)
    assert (snapshot["seq"], snapshot["content"]) == (8, "all of it and more")


async def test_expired_text_is_unknown_and_not_begun_in_its_middle(opened: Opened) -> None:
    streams, redis = opened
    await _open(streams)
    await _append(streams, 1, "a")
    await redis.call("DEL", f"live:{TAG}:m")  # what its expiry does

    assert not await _append(streams, 2, "b")
    assert await redis.call("EXISTS", f"live:{TAG}:m") == 0
    assert await _snapshots(streams) == []


async def test_expired_text_is_not_shown_and_forgotten_at_the_next_attach(opened: Opened) -> None:
    streams, redis = opened
    await _open(streams)
    await redis.call("DEL", f"live:{TAG}:m")

    assert await _snapshots(streams) == []
    assert await redis.call("HEXISTS", names_of(ALICE).state, "l:m") == 0


async def test_every_delta_renews_the_life_of_its_text(opened: Opened) -> None:
    streams, redis = opened
    await _open(streams)
    await redis.call("EXPIRE", f"live:{TAG}:m", 100)

    await _append(streams, 1, "a")

    assert await redis.call("TTL", f"live:{TAG}:m") > 890


async def test_publications_of_a_reply_are_numbered_one_after_another(valkey: str) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue(100)
    async with (
        open_streams(valkey) as (streams, _),
        Subscription(valkey, name="test", on_message=lambda _, payload: heard.put_nowait(payload)) as subscription,
    ):
        await subscription.subscribe("user:alice")
        await streams.open_live(ALICE, "m", "c", 2, "takeover")
        await _append(streams, 1, "a", attempt=2)
        await streams.reopen_live(ALICE, "m", "c", 2, 1, "a")
        await streams.apply(ALICE, [response("m", 2)])
        publications = [parse(await heard.get()) for _ in range(6)]

    first = publications[0].number
    assert [each.number for each in publications] == list(range(first, first + 6))
    assert [each.kind for each in publications] == [b"o", b"o", b"d", b"o", b"o", b"e"]
    frames = [json.loads(each.frame) for each in publications]
    assert [frame["type"] for frame in frames] == ["reset", "typing", "delta", "snapshot", "typing", "response"]
    assert [frames[1]["active"], frames[4]["active"]] == [True, False]
