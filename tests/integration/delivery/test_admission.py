"""Rate limits, and what is remembered of messages that the log has."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.integration.delivery.support import ALICE, BOB, echo, failure, open_streams, response

from duologue.delivery.names import names_of
from duologue.delivery.stream import Admission, CommandNote, DurableFrame, RateLimit, Refusal, UserStreams
from duologue.engines.redis import Redis

ADMITTED = Admission(duplicate=False, retry_after_seconds=None)
THREE_A_MINUTE = RateLimit(3, 60)
PLENTY = RateLimit(10_000, 60)


@pytest.fixture
async def opened(valkey: str) -> AsyncIterator[tuple[UserStreams, Redis]]:
    async with open_streams(valkey) as both:
        yield both


@pytest.fixture
def streams(opened: tuple[UserStreams, Redis]) -> UserStreams:
    return opened[0]


@pytest.fixture
def redis(opened: tuple[UserStreams, Redis]) -> Redis:
    return opened[1]


async def test_messages_up_to_the_limit_are_admitted_and_the_next_must_wait(streams: UserStreams) -> None:
    admissions = [await streams.admit(ALICE, f"m{number}", limit=THREE_A_MINUTE) for number in range(5)]

    assert admissions[:3] == [ADMITTED] * 3
    for refused in admissions[3:]:
        assert refused.retry_after_seconds == pytest.approx(20, abs=1)
    assert await streams.admit(BOB, "m", limit=THREE_A_MINUTE) == ADMITTED


async def test_refused_message_counts_nothing_and_is_admitted_after_the_wait(streams: UserStreams) -> None:
    limit = RateLimit(20, 1)
    while (wait := (await streams.admit(ALICE, "m", limit=limit)).retry_after_seconds) is None:
        pass

    assert 0 < wait <= 0.05
    while (later := (await streams.admit(ALICE, "m", limit=limit)).retry_after_seconds) is not None:
        assert later <= wait


async def test_message_that_was_noted_is_a_duplicate_and_passes_the_limit(streams: UserStreams) -> None:
    await streams.admit(ALICE, "m", limit=RateLimit(1, 60))
    await streams.note(ALICE, "m", "c")

    assert await streams.admit(ALICE, "m", limit=RateLimit(1, 60)) == Admission(
        duplicate=True, retry_after_seconds=None
    )
    assert (await streams.admit(ALICE, "other", limit=RateLimit(1, 60))).retry_after_seconds is not None


async def test_duplicates_over_ten_times_the_limit_must_wait(streams: UserStreams) -> None:
    await streams.note(ALICE, "m", "c")

    admissions = [await streams.admit(ALICE, "m", limit=THREE_A_MINUTE) for _ in range(31)]

    assert [admission.retry_after_seconds is None for admission in admissions] == [True] * 30 + [False]


async def test_conversation_of_a_noted_message_is_known(streams: UserStreams) -> None:
    await streams.note(ALICE, "m", "c")

    assert await streams.conversation_of(ALICE, "m") == "c"
    assert await streams.conversation_of(ALICE, "other") is None
    assert await streams.conversation_of(BOB, "m") is None


async def test_command_is_known_by_what_it_stood_for_first(streams: UserStreams) -> None:
    first, other = CommandNote("c", 1), CommandNote("c", 2)

    assert (await streams.admit_command(ALICE, "k", limit=THREE_A_MINUTE, like_message=True)).note is None
    assert await streams.reserve_command(ALICE, "k", first) == first
    assert await streams.reserve_command(ALICE, "k", other) == first
    assert (await streams.admit_command(ALICE, "k", limit=THREE_A_MINUTE, like_message=True)).note == first
    assert (await streams.admit_command(BOB, "k", limit=THREE_A_MINUTE, like_message=True)).note is None
    assert (await streams.admit_command(ALICE, None, limit=THREE_A_MINUTE, like_message=True)).note is None

    await streams.note_command(ALICE, "k", CommandNote("c", 1, acknowledged=True))
    note = (await streams.admit_command(ALICE, "k", limit=THREE_A_MINUTE, like_message=True)).note
    assert note == CommandNote("c", 1, acknowledged=True)


async def test_command_like_a_message_shares_the_limit_of_messages_unless_it_is_a_repeat(streams: UserStreams) -> None:
    await streams.admit(ALICE, "m", limit=THREE_A_MINUTE)

    waits = [
        (await streams.admit_command(ALICE, f"{n}", limit=THREE_A_MINUTE, like_message=True)).retry_after_seconds
        for n in range(3)
    ]

    assert waits[:2] == [None, None]
    assert waits[2] == pytest.approx(20, abs=1)
    await streams.reserve_command(ALICE, "known", CommandNote("c", 1))
    repeat = await streams.admit_command(ALICE, "known", limit=THREE_A_MINUTE, like_message=True)
    assert repeat.retry_after_seconds is None


async def test_command_unlike_a_message_is_admitted_ten_times_as_often(streams: UserStreams) -> None:
    waits = [
        (await streams.admit_command(ALICE, None, limit=THREE_A_MINUTE, like_message=False)).retry_after_seconds
        for _ in range(31)
    ]

    assert [wait is None for wait in waits] == [True] * 30 + [False]
    assert (await streams.admit(ALICE, "m", limit=THREE_A_MINUTE)) == ADMITTED


async def test_address_over_its_limit_must_wait(streams: UserStreams) -> None:
    limit = RateLimit(2, 60)

    waits = [await streams.limit_address("2001:db8::1", limit) for _ in range(3)]

    assert waits[:2] == [None, None]
    assert waits[2] == pytest.approx(30, abs=1)
    assert await streams.limit_address("2001:db8::2", limit) is None


async def admit(streams: UserStreams, message: str, *, max_pending: int = 2, max_by_load: int = 9) -> Admission:
    return await streams.admit(ALICE, message, limit=PLENTY, max_pending=max_pending, max_by_load=max_by_load)


async def test_message_beyond_those_without_outcome_is_refused_and_another_user_is_not(streams: UserStreams) -> None:
    assert [await admit(streams, message) for message in ("1", "2")] == [ADMITTED] * 2
    assert await admit(streams, "3") == Admission(False, None, Refusal.PENDING)
    assert await streams.admit(BOB, "4", limit=PLENTY, max_pending=2) == ADMITTED


@pytest.mark.parametrize("outcome", [response("1"), failure("1")])
async def test_outcome_makes_room_for_another_message_also_when_it_is_a_repeat(
    streams: UserStreams, redis: Redis, outcome: DurableFrame
) -> None:
    for message in ("1", "2"):
        await admit(streams, message)
    await streams.apply(ALICE, [echo("1"), outcome])
    assert await admit(streams, "3") == ADMITTED
    assert await admit(streams, "4") == Admission(False, None, Refusal.PENDING)
    await redis.call("ZADD", names_of(ALICE).pending, 1, "1")
    await streams.apply(ALICE, [outcome])
    assert await redis.call("ZSCORE", names_of(ALICE).pending, "1") is None


async def test_message_that_is_withdrawn_makes_room_for_another(streams: UserStreams) -> None:
    for message in ("1", "2"):
        await admit(streams, message)
    await streams.withdraw(ALICE, "1")
    assert await admit(streams, "3") == ADMITTED


async def test_message_sent_again_before_its_outcome_counts_once(streams: UserStreams) -> None:
    for message in ("1", "1", "2", "1", "2"):
        assert await admit(streams, message) == ADMITTED
    await streams.note(ALICE, "1", "c")
    assert (await admit(streams, "1")).duplicate


async def test_message_whose_outcome_was_never_counted_is_forgotten_with_its_age(
    streams: UserStreams, redis: Redis
) -> None:
    now = int((await redis.call("TIME"))[0]) * 1000
    pending = names_of(ALICE).pending
    await redis.call("ZADD", pending, now - 3_601_000, "old", now - 3_500_000, "younger")
    assert await admit(streams, "1") == ADMITTED
    assert await admit(streams, "2") == Admission(False, None, Refusal.PENDING)
    assert await redis.call("ZRANGE", pending, 0, -1) == [b"younger", b"1"]
    assert 3590 < await redis.call("TTL", pending) <= 3600


async def test_system_that_takes_nothing_new_refuses_what_it_does_not_know_and_counts_nothing(
    streams: UserStreams, redis: Redis
) -> None:
    await admit(streams, "1")
    await streams.note(ALICE, "2", "c")
    assert await admit(streams, "1", max_by_load=0) == ADMITTED  # it is on its way to the log
    assert await admit(streams, "2", max_by_load=0) == Admission(True, None)
    for _ in range(5):
        refused = await streams.admit(ALICE, "3", limit=RateLimit(1, 60), max_by_load=0)
        assert refused == Admission(False, None, Refusal.LOAD)
    assert await redis.call("ZRANGE", names_of(ALICE).pending, 0, -1) == [b"1"]


async def test_loaded_system_takes_as_many_of_a_user_as_it_says(streams: UserStreams) -> None:
    assert [(await admit(streams, message, max_pending=3, max_by_load=2)).refusal for message in ("1", "2", "3")] == [
        None,
        None,
        Refusal.LOAD,
    ]
    assert await admit(streams, "3", max_pending=3) == ADMITTED
    assert (await admit(streams, "4", max_pending=3, max_by_load=2)).refusal is Refusal.PENDING


async def test_rate_refuses_before_a_message_counts_as_one_without_outcome(streams: UserStreams, redis: Redis) -> None:
    for message in ("1", "2"):
        admission = await streams.admit(ALICE, message, limit=RateLimit(1, 60))
    assert admission.refusal is Refusal.RATE
    assert await redis.call("ZCARD", names_of(ALICE).pending) == 1


async def test_user_who_is_forgotten_has_no_messages_without_outcome(streams: UserStreams, redis: Redis) -> None:
    await admit(streams, "1")
    await streams.forget(ALICE)
    assert await redis.call("EXISTS", names_of(ALICE).pending) == 0
