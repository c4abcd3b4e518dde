"""Rate limits, and what is remembered of messages that the log has."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.integration.delivery.support import ALICE, BOB, open_streams

from duologue.delivery.stream import Admission, CommandNote, RateLimit, UserStreams

ADMITTED = Admission(duplicate=False, retry_after_seconds=None)
THREE_A_MINUTE = RateLimit(3, 60)


@pytest.fixture
async def streams(valkey: str) -> AsyncIterator[UserStreams]:
    async with open_streams(valkey) as (opened, _):
        yield opened


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
