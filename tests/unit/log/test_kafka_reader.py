"""How much the thread of a Kafka consumer reads ahead, and how its calls reach the loop."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from duologue.log.kafka_reader import Room
from duologue.log.kafka_thread import Mailbox, run_in_thread


def test_room_full_by_records_has_room_again_at_a_quarter() -> None:
    room = Room()
    room.read_records = 2047
    assert not room.full()
    room.read_records = 2048
    assert room.full()
    room.taken_records = 2048 - 512
    assert room.full()
    room.taken_records += 1
    assert not room.full()


def test_room_full_by_bytes_rests() -> None:
    room = Room()
    room.read_records, room.read_bytes = 3, 16 * 1024 * 1024
    assert room.full()


async def test_mailbox_calls_of_a_thread_are_made_in_the_loop_in_their_order() -> None:
    made: list[int] = []
    threads: set[int] = set()
    mailbox = Mailbox(asyncio.get_running_loop())

    def call(number: int) -> None:
        made.append(number)
        threads.add(threading.get_ident())

    def work() -> None:
        for number in range(5000):
            mailbox.add(partial(call, number))
            if number % 3 == 0:
                mailbox.flush()
        mailbox.flush()

    await run_in_thread(work, name="test")
    assert made == list(range(5000))
    assert threads == {threading.get_ident()}


async def test_run_in_thread_error_is_raised_where_it_is_awaited() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_in_thread(fail, name="test")
