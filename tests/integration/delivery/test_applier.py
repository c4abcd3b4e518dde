"""The applier: order and repeats while Redis hangs, dies and comes back; frames that Redis refuses."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.integration.delivery.support import ALICE, BOB, DEADLINE_SECONDS, echo, open_streams, response

from duologue.cluster.valkey import ValkeyServer
from duologue.delivery.applier import MAX_BATCH, OrderedApplier
from duologue.delivery.stream import POISONED, AttachReply, DurableFrame, UserStreams
from duologue.domain.errors import RedisUnavailable
from duologue.domain.ids import UserKey
from duologue.engines.redis import Redis, RedisCommandError

BAD = DurableFrame("response", "bad", 1, b"[]", b"{}")


class _Poison:
    """Takes poisoned frames; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.frames: list[tuple[UserKey, str]] = []
        self._failures = failures

    async def __call__(self, user: UserKey, frame: DurableFrame, error: RedisCommandError) -> None:
        if self._failures:
            self._failures -= 1
            raise OSError("the store is away")
        self.frames.append((user, frame.message_id))


async def _all(streams: UserStreams, user: UserKey) -> list[str]:
    """Return the messages of a user's durable frames, in order."""
    parts: list[AttachReply] = [await streams.attach(user, "none")]
    while parts[-1].more:
        parts.append(await streams.attach_behind(user, parts[-1].end))
    return [json.loads(frame)["message_id"] for part in parts for _, frame in part.frames]


async def test_submit_many_frames_of_many_users_keeps_each_ones_order(valkey: str) -> None:
    users = [UserKey("default", f"u{number}") for number in range(20)]
    names = [f"m{number}" for number in range(MAX_BATCH + 40)]
    async with open_streams(valkey) as (streams, _), OrderedApplier(streams, on_poison=_Poison()) as applier:
        futures = [applier.submit(user, echo(name)) for name in names for user in users]
        fates = await asyncio.gather(*futures)

        assert applier.waiting == 0
        assert {fate.fate for fate in fates} == {"applied"}
        for user in users:
            assert await _all(streams, user) == names


async def test_submit_a_repeat_resolves_as_repeat(valkey: str) -> None:
    async with open_streams(valkey) as (streams, _), OrderedApplier(streams, on_poison=_Poison()) as applier:
        first, second = await asyncio.gather(applier.submit(ALICE, echo("a")), applier.submit(ALICE, echo("a")))

    assert (first.fate, second.fate) == ("applied", "repeat")


@pytest.mark.parametrize("how", ["pause", "kill", "restart"])
async def test_redis_going_away_in_the_middle_keeps_order_and_doubles_nothing(
    valkey_server: ValkeyServer, how: str
) -> None:
    names = [f"m{number}" for number in range(300)]
    async with (
        open_streams(valkey_server.url, durable=True, timeout_seconds=0.4) as (streams, redis),
        OrderedApplier(streams, on_poison=_Poison()) as applier,
    ):
        futures = []
        for number, name in enumerate(names):
            futures.append(applier.submit(ALICE, echo(name)))
            futures.append(applier.submit(BOB, echo(name)))
            if number % 10 == 0:
                await futures[-20 if number else -1]  # some are applied, some under way
            if number == 150:
                await _away_and_back(valkey_server, redis, how)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.gather(*futures)

        assert await _all(streams, ALICE) == names
        assert await _all(streams, BOB) == names


async def _away_and_back(server: ValkeyServer, redis: Redis, how: str) -> None:
    """Take Redis away until its connection has noticed, and bring it back."""
    match how:
        case "restart":
            server.restart()
        case "pause":
            server.pause()
            await _noticed(redis)
            server.resume()
        case _:
            server.kill()
            await _noticed(redis)
            server.start()


async def _noticed(redis: Redis) -> None:
    with pytest.raises(RedisUnavailable):
        await redis.call("PING")


async def test_frame_refused_for_its_data_is_set_aside_and_the_others_go_on(valkey: str) -> None:
    poison = _Poison()
    async with open_streams(valkey) as (streams, _), OrderedApplier(streams, on_poison=poison) as applier:
        frames = [echo("a"), BAD, response("a"), echo("b")]
        fates = await asyncio.gather(*(applier.submit(ALICE, frame) for frame in frames))

        assert [fate.fate for fate in fates] == ["applied", "poisoned", "applied", "applied"]
        assert poison.frames == [(ALICE, "bad")]
        assert await _all(streams, ALICE) == ["a", "a", "b"]


async def test_frame_that_cannot_be_set_aside_yet_keeps_its_place(valkey: str) -> None:
    poison = _Poison(failures=2)
    async with open_streams(valkey) as (streams, _), OrderedApplier(streams, on_poison=poison) as applier:
        fates = await asyncio.gather(applier.submit(ALICE, BAD), applier.submit(ALICE, echo("b")))

    assert fates[0] == POISONED
    assert poison.frames == [(ALICE, "bad")]


async def test_drain_returns_when_all_is_applied(valkey: str) -> None:
    async with open_streams(valkey) as (streams, _), OrderedApplier(streams, on_poison=_Poison()) as applier:
        futures = [applier.submit(ALICE, echo(f"m{number}")) for number in range(500)]
        await applier.drain()

        assert all(future.done() for future in futures)


async def test_leaving_with_frames_waiting_cancels_their_futures(valkey_server: ValkeyServer) -> None:
    async with open_streams(valkey_server.url) as (streams, _):
        async with OrderedApplier(streams, on_poison=_Poison()) as applier:
            valkey_server.pause()
            futures = [applier.submit(ALICE, echo(f"m{number}")) for number in range(3)]
            await asyncio.sleep(0)
        valkey_server.resume()

    assert all(future.cancelled() for future in futures)


async def test_caller_cancelled_meanwhile_changes_nothing_for_the_rest(valkey: str) -> None:
    async with open_streams(valkey) as (streams, _), OrderedApplier(streams, on_poison=_Poison()) as applier:
        futures = [applier.submit(ALICE, echo(name)) for name in ("a", "b")]
        futures[0].cancel()
        await futures[1]

        assert await _all(streams, ALICE) == ["a", "b"]
