"""Durable frames: numbers, repeats, epochs, what is kept and what a client can recover."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from tests.integration.delivery.support import (
    ALICE,
    BOB,
    delta,
    echo,
    failure,
    open_streams,
    response,
)

from duologue.cluster.valkey import ValkeyServer
from duologue.delivery.names import EventPosition, names_of
from duologue.delivery.stream import REPEAT, CommandNote, DurableFrame, UserStreams
from duologue.domain.errors import RedisUnavailable
from duologue.domain.ids import UserKey
from duologue.engines.redis import Redis, RedisCommandError

STATE = names_of(ALICE).state
EVENTS = names_of(ALICE).events
APPLIED = names_of(ALICE).applied

Opened = tuple[UserStreams, Redis]


@pytest.fixture
async def opened(valkey: str) -> AsyncIterator[Opened]:
    async with open_streams(valkey) as pair:
        yield pair


async def _numbers_applied(streams: UserStreams, *frames: DurableFrame) -> list[int]:
    """Apply frames one by one; return their event numbers, 0 for repeats."""
    fates = [(await streams.apply(ALICE, [frame]))[0] for frame in frames]
    return [fate.position.number if fate.position else 0 for fate in fates]


async def test_apply_several_frames_numbers_them_without_gaps(opened: Opened) -> None:
    streams, _ = opened

    first = await streams.apply(ALICE, [echo("a"), echo("b")])
    second = await streams.apply(ALICE, [response("a")])

    positions = [fate.position for fate in first + second]
    assert [position.number for position in positions if position] == [1, 2, 3]
    reply = await streams.attach_behind(ALICE, EventPosition(reply_epoch(positions), 0))
    assert [number for number, _ in reply.frames] == [1, 2, 3]
    assert reply.frames[0][1].startswith(b'{"event_id":"' + reply.epoch.encode() + b':1","type":')


def reply_epoch(positions: list[EventPosition | None]) -> str:
    """Return the one epoch of all positions."""
    (epoch,) = {position.epoch for position in positions if position}
    return epoch


async def test_apply_repeat_in_another_call_and_in_the_same_is_dropped(opened: Opened) -> None:
    streams, _ = opened

    fates = await streams.apply(ALICE, [echo("a"), echo("a")])
    again = await streams.apply(ALICE, [echo("a"), echo("b")])

    assert [fate.fate for fate in fates + again] == ["applied", "repeat", "repeat", "applied"]


async def test_apply_repeat_publishes_nothing(opened: Opened) -> None:
    streams, _ = opened
    await streams.apply(ALICE, [response("a")])
    before = await streams.numbers([ALICE])

    await streams.apply(ALICE, [response("a")])

    assert await streams.numbers([ALICE]) == before


async def test_apply_both_outcomes_of_an_attempt_keeps_the_first(opened: Opened) -> None:
    streams, _ = opened

    assert await _numbers_applied(streams, response("a", 1), failure("a", 1), failure("a", 2)) == [1, 0, 2]


async def test_apply_echo_after_its_outcome_is_dropped_though_it_never_came(opened: Opened) -> None:
    streams, _ = opened

    assert await _numbers_applied(streams, response("a"), echo("a")) == [1, 0]


async def test_apply_echo_of_a_later_attempt_is_a_repeat(opened: Opened) -> None:
    streams, _ = opened

    assert await _numbers_applied(streams, echo("a"), echo("a")._replace(attempt=3)) == [1, 0]


async def test_applied_keys_are_remembered_up_to_their_bound(opened: Opened) -> None:
    streams, redis = opened
    await streams.apply(ALICE, [echo(f"m{number}") for number in range(1024)])

    assert await _numbers_applied(streams, echo("m0")) == [0]
    assert await _numbers_applied(streams, echo("next"), echo("m1"), echo("m0")) == [1025, 0, 1026]
    assert await redis.call("ZCARD", APPLIED) == 1024


async def test_apply_frame_that_is_no_object_is_refused_and_nothing_is_applied(opened: Opened) -> None:
    streams, _ = opened
    bad = DurableFrame("echo", "bad", 0, b"[]")

    with pytest.raises(RedisCommandError):
        await streams.apply(ALICE, [echo("a"), bad])

    assert await _numbers_applied(streams, echo("a")) == [1]


async def test_stream_over_1000_frames_keeps_the_newest(opened: Opened) -> None:
    streams, redis = opened
    for start in range(0, 1010, 101):
        await streams.apply(ALICE, [echo(f"m{number}") for number in range(start, start + 101)])

    assert await redis.call("XLEN", EVENTS) == 1000
    reply = await streams.attach(ALICE, None)
    assert reply.position.number == 10
    assert not reply.recovered


async def test_stream_over_4_mib_keeps_what_fits(opened: Opened) -> None:
    streams, redis = opened
    for number in range(6):
        await streams.apply(ALICE, [echo(f"m{number}", size=1_000_000)])

    kept = await redis.call("XLEN", EVENTS)
    assert kept == 4
    held = int(await redis.call("HGET", STATE, "bytes"))
    entries = await redis.call("XRANGE", EVENTS, "-", "+")
    assert held == sum(len(fields[1]) for _, fields in entries) <= 4 * 1024 * 1024


async def test_stream_with_one_frame_over_the_bound_keeps_that_frame(opened: Opened) -> None:
    streams, redis = opened
    await streams.apply(ALICE, [echo("small"), echo("huge", size=5_000_000)])

    assert await redis.call("XLEN", EVENTS) == 1
    assert len((await streams.attach(ALICE, None)).frames) == 1


async def test_keys_after_apply_expire_as_the_design_says(opened: Opened) -> None:
    streams, redis = opened
    await streams.open_live(ALICE, "a", "c", 1, None)
    await streams.apply(ALICE, [echo("a"), response("a")])
    await streams.open_live(ALICE, "b", "c", 1, None)
    await streams.note(ALICE, "a", "c")
    await streams.reserve_command(ALICE, "regenerate", CommandNote("c", 1))
    await streams.note_command(ALICE, "stop", CommandNote("c"))

    seconds = {key: await redis.call("TTL", key) for key in await redis.call("KEYS", "*")}

    tag = names_of(ALICE).tag
    week, day, hour = 7 * 86400, 86400, 3600
    wanted = {STATE: week, EVENTS: week, APPLIED: day, f"ended:{tag}:a": hour, f"note:{tag}:a": hour}
    wanted |= {f"live:{tag}:b": 900, f"command:{tag}:regenerate": hour, f"command:{tag}:stop": hour}
    assert {key.decode(): pytest.approx(value, abs=30) for key, value in seconds.items()} == wanted


# Epochs


async def test_attach_user_never_seen_begins_an_epoch_and_keeps_it(opened: Opened) -> None:
    streams, _ = opened

    first, second = await streams.attach(ALICE, None), await streams.attach(ALICE, None)

    assert first.recovered
    assert first.position.number == 0
    assert first.epoch == second.epoch


@pytest.mark.parametrize(
    "damage",
    [("DEL", EVENTS), ("HDEL", STATE, "event"), ("HDEL", STATE, "number"), ("DEL", STATE)],
    ids=lambda damage: "-".join(damage).replace(names_of(ALICE).tag, ""),
)
async def test_epoch_after_a_loss_is_new_and_keeps_only_the_applied_keys(
    opened: Opened, damage: tuple[str, ...]
) -> None:
    streams, redis = opened
    (applied,) = await streams.apply(ALICE, [echo("a")])
    assert applied.position is not None
    await streams.advance_cursor(ALICE, applied.position)
    await streams.open_live(ALICE, "a", "c", 1, None)
    number = (await streams.attach(ALICE, None)).number

    await redis.call(*damage)
    repeat = await streams.apply(ALICE, [echo("a")])
    reply = await streams.attach(ALICE, applied.position.event_id)

    assert repeat == [REPEAT]
    assert reply.epoch != applied.position.epoch
    assert not reply.recovered
    assert reply.number > number
    assert (reply.frames, reply.lives) == ([], [])
    assert await redis.call("HGET", STATE, "cursor") is None
    assert not await streams.append_live(ALICE, "a", 1, 1, 1, "x", delta("a", 1, "x"))


@pytest.mark.parametrize(("durable", "same"), [(True, True), (False, False)])
async def test_epoch_after_a_restart_is_the_same_only_if_redis_is_durable(
    valkey_server: ValkeyServer, durable: bool, same: bool
) -> None:
    async with open_streams(valkey_server.url, durable=durable) as (streams, redis):
        (applied,) = await streams.apply(ALICE, [echo("a")])
        await streams.open_live(ALICE, "b", "c", 1, None)
        valkey_server.restart()
        await _reconnected(redis)

        reply = await streams.attach(ALICE, applied.position.event_id if applied.position else "")
        (later,) = await streams.apply(ALICE, [echo("b")])

    assert reply.recovered is same
    assert (len(reply.lives) == 1) is same
    assert later.position is not None
    assert later.position.number == (2 if same else 1)


@pytest.mark.parametrize("call", ["append_live", "publish", "apply", "open_live"])
async def test_epoch_after_a_restart_is_minted_by_whichever_script_comes_first(
    valkey_server: ValkeyServer, call: str
) -> None:
    async with open_streams(valkey_server.url) as (streams, redis):
        before = await streams.attach(ALICE, None)
        await streams.open_live(ALICE, "a", "c", 1, None)
        valkey_server.restart()
        await _reconnected(redis)

        match call:
            case "append_live":
                assert not await streams.append_live(ALICE, "a", 1, 1, 1, "x", delta("a", 1, "x"))
            case "publish":
                await streams.publish(ALICE, b"{}")
            case "apply":
                await streams.apply(ALICE, [echo("a")])
            case "open_live":
                assert await streams.open_live(ALICE, "b", "c", 1, None)
        after = await streams.attach(ALICE, before.event_id)

    assert after.epoch != before.epoch
    assert after.number > before.number
    assert len(after.lives) == (1 if call == "open_live" else 0)


async def _reconnected(redis: Redis) -> None:
    """Return when a connection has noticed a restart and come back."""
    while True:
        try:
            await redis.connected.wait()
            await redis.call("PING")
        except RedisUnavailable:
            continue
        return


# Attaching


async def _filled(streams: UserStreams, count: int) -> str:
    """Apply `count` echoes; return the epoch."""
    fates = await streams.apply(ALICE, [echo(f"m{number}") for number in range(1, count + 1)])
    return reply_epoch([fate.position for fate in fates])


async def test_attach_behind_an_event_recovers_what_follows(opened: Opened) -> None:
    streams, _ = opened
    epoch = await _filled(streams, 5)

    reply = await streams.attach(ALICE, f"{epoch}:3")

    assert reply.recovered
    assert reply.event_id == f"{epoch}:3"
    assert [number for number, _ in reply.frames] == [4, 5]
    assert reply.end == EventPosition(epoch, 5)


@pytest.mark.parametrize("last_event_id", ["", "?", "other:3", "3", "a:b:c", "x" * 80, ":", "e:99999999999999999"])
async def test_attach_behind_an_id_not_of_this_epoch_replays_from_the_oldest(
    opened: Opened, last_event_id: str
) -> None:
    streams, _ = opened
    await _filled(streams, 3)

    reply = await streams.attach(ALICE, last_event_id)

    assert not reply.recovered
    assert reply.position.number == 0
    assert len(reply.frames) == 3


async def test_attach_behind_an_event_yet_to_come_replays_from_the_oldest(opened: Opened) -> None:
    streams, _ = opened
    epoch = await _filled(streams, 3)

    reply = await streams.attach(ALICE, f"{epoch}:4")

    assert (reply.recovered, reply.position.number) == (False, 0)


async def test_attach_behind_a_trimmed_event_replays_from_the_oldest_kept(opened: Opened) -> None:
    streams, _ = opened
    epoch = await _filled(streams, 1005)

    lost, just_kept = await streams.attach(ALICE, f"{epoch}:4"), await streams.attach(ALICE, f"{epoch}:5")

    assert (lost.recovered, lost.position.number) == (False, 5)
    assert (just_kept.recovered, just_kept.position.number) == (True, 5)


async def test_attach_behind_the_newest_events_asks_as_little_of_a_long_stream_as_of_a_short_one(
    opened: Opened,
) -> None:
    streams, redis = opened
    epoch = await _filled(streams, 5)
    await streams.attach(ALICE, None)  # and its script is known

    async def commands(last_event_id: str) -> tuple[int, dict[str, int]]:
        await redis.call("CONFIG", "RESETSTAT")
        reply = await streams.attach(ALICE, last_event_id)
        stats = bytes(await redis.call("INFO", "commandstats")).decode().split()
        calls = [re.fullmatch(r"cmdstat_(\w+):calls=(\d+),.*", line) for line in stats]
        return len(reply.frames), {found[1]: int(found[2]) for found in calls if found}

    of_short = await commands(f"{epoch}:3")
    assert of_short[0] == 2
    assert {"xrange", "hgetall"} <= of_short[1].keys()
    await streams.apply(ALICE, [echo(f"m{number}") for number in range(6, 1006)])
    assert await commands(f"{epoch}:1003") == of_short


async def test_attach_without_an_event_begins_at_the_cursor(opened: Opened) -> None:
    streams, _ = opened
    epoch = await _filled(streams, 5)

    assert (await streams.attach(ALICE, None)).position.number == 0
    assert await streams.advance_cursor(ALICE, EventPosition(epoch, 3))
    reply = await streams.attach(ALICE, None)

    assert (reply.recovered, reply.position.number, len(reply.frames)) == (True, 3, 2)


async def test_cursor_never_moves_back_nor_to_what_is_not_there(opened: Opened) -> None:
    streams, _ = opened
    epoch = await _filled(streams, 5)
    await streams.advance_cursor(ALICE, EventPosition(epoch, 3))

    for elsewhere in (EventPosition(epoch, 2), EventPosition(epoch, 6), EventPosition("other", 4)):
        assert not await streams.advance_cursor(ALICE, elsewhere)
    assert (await streams.attach(ALICE, None)).position.number == 3


async def test_attach_over_256_kib_comes_in_parts_with_the_cut_in_the_last(opened: Opened) -> None:
    streams, _ = opened
    await streams.open_live(ALICE, "live", "c", 1, None)
    for number in range(10):
        await streams.apply(ALICE, [echo(f"m{number}", size=60_000)])

    parts = [await streams.attach(ALICE, None)]
    while parts[-1].more:
        parts.append(await streams.attach_behind(ALICE, parts[-1].end))

    assert [number for part in parts for number, _ in part.frames] == list(range(1, 11))
    assert all(sum(len(frame) for _, frame in part.frames) <= 256 * 1024 for part in parts)
    assert [len(part.lives) for part in parts] == [0] * (len(parts) - 1) + [1]
    assert len(parts) == 3


async def test_attach_with_a_frame_larger_than_a_part_returns_it_alone(opened: Opened) -> None:
    streams, _ = opened
    await streams.apply(ALICE, [echo("a", size=400_000), echo("b")])

    reply = await streams.attach(ALICE, None)

    assert [number for number, _ in reply.frames] == [1]
    assert reply.more


async def test_numbers_of_users_unknown_are_none(opened: Opened) -> None:
    streams, _ = opened
    reply = await streams.attach(ALICE, None)

    assert await streams.numbers([ALICE, BOB]) == [reply.number, None]
    assert await streams.numbers([]) == []


async def test_users_of_two_tenants_share_nothing(opened: Opened) -> None:
    streams, _ = opened
    namesake = UserKey("acme", "alice")
    await streams.apply(ALICE, [echo("a")])

    assert (await streams.attach(namesake, None)).frames == []
    assert (await streams.apply(namesake, [echo("a")]))[0].fate == "applied"
    assert names_of(ALICE).channel == "user:alice"
    assert names_of(namesake).channel == "user:acme:alice"


async def test_forget_leaves_no_key_of_the_user_and_all_of_others(opened: Opened) -> None:
    streams, redis = opened
    for user in (ALICE, BOB):
        await streams.open_live(user, "a", "c", 1, None)
        await streams.apply(user, [echo("a"), response("b")])
        await streams.note(user, "a", "c")
    kept = {key for key in await redis.call("KEYS", "*") if b"bob" in key}

    await streams.forget(ALICE)

    assert set(await redis.call("KEYS", "*")) == kept
    assert len(kept) == 6


async def test_calls_while_redis_is_away_raise_redis_unavailable(valkey_server: ValkeyServer) -> None:
    async with open_streams(valkey_server.url) as (streams, redis):
        valkey_server.stop()
        while redis.connected.is_set():
            with pytest.raises(RedisUnavailable):
                await streams.attach(ALICE, None)

        for call in (streams.apply(ALICE, [echo("a")]), streams.publish(ALICE, b"{}"), streams.numbers([ALICE])):
            with pytest.raises(RedisUnavailable):
                await call
