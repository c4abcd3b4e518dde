"""When the edge lets messages in, by the figures of those who answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from duologue.delivery.load import LoadBoard, LoadReport, Standing
from duologue.engines.redis import Redis
from duologue.websocket_server.load import FIRST_REPLIES_PER_SECOND, RELIEF, UNLIMITED, LoadGate

LIMIT = 60.0


def gate(*, draw: float = 0.0) -> LoadGate:
    """Return a gate that has read nothing. A conversation is called by the number of its partition."""
    board = LoadBoard(Redis("redis://127.0.0.1:1", name="unused"))
    return LoadGate(board, limit_seconds=LIMIT, partition_of=int, draw=lambda: draw)


def standing(
    consumer: str,
    wait: float,
    backlog: float | None = None,
    *,
    written_at: int = 1,
    partitions: Sequence[int] = (0,),
    rate: float = 10.0,
) -> Standing:
    report = LoadReport(
        consumer=consumer,
        partitions=partitions,
        waiting=0,
        unread=0,
        slots=8,
        running=8,
        wait_seconds=wait,
        backlog_seconds=wait if backlog is None else backlog,
        replies_per_second=rate,
    )
    return Standing(report, written_at)


def taken(ours: LoadGate, conversation: str) -> bool:
    """Tell whether a message of a user without others is taken."""
    return ours.allowance(conversation).messages > 0


def test_message_for_a_consumer_past_the_limit_is_refused_until_the_queue_is_relieved() -> None:
    ours = gate()
    verdicts = []
    for written_at, wait in enumerate([59.0, 61.0, 59.0, LIMIT * RELIEF + 1, LIMIT * RELIEF - 1, 59.0], 1):
        ours.learn([standing("a", wait, written_at=written_at)])
        verdicts.append(taken(ours, "0"))
    assert verdicts == [True, False, False, False, True, True]


def test_refusal_tells_when_the_queue_will_be_relieved_and_spreads_those_who_come_back() -> None:
    for draw, expected in ((0.0, 25.0), (1.0, 37.5)):
        ours = gate(draw=draw)
        ours.learn([standing("a", 70.0)])
        assert ours.allowance("0").retry_after_seconds == pytest.approx(expected)
    ours = gate()
    ours.learn([standing("a", 1000.0)])
    assert ours.allowance("0").retry_after_seconds == LIMIT


def test_only_conversations_of_the_consumer_in_need_are_refused() -> None:
    ours = gate()
    ours.learn([standing("a", 500.0, partitions=[0, 1]), standing("b", 0.0, partitions=[2])])
    assert [taken(ours, name) for name in ("0", "1", "2", "3")] == [False, False, True, True]


def test_partition_taken_over_goes_by_the_figures_of_its_new_owner() -> None:
    ours = gate()
    ours.learn([standing("dead", 500.0, written_at=5, partitions=[0, 1])])
    ours.learn(
        [standing("dead", 500.0, written_at=5, partitions=[0, 1]), standing("b", 1.0, written_at=9, partitions=[0])]
    )
    assert taken(ours, "0")
    assert not taken(ours, "1")


def test_appends_since_the_last_figures_count_at_the_rate_of_the_consumer_and_new_figures_replace_them() -> None:
    ours = gate()
    ours.learn([standing("a", 10.0, written_at=1, rate=2.0)])
    for _ in range(100):
        assert taken(ours, "0")
        ours.appended("0")
    ours.appended("0")
    assert not taken(ours, "0")
    ours.learn([standing("a", 10.0, written_at=1, rate=2.0)])  # the same once more: nothing new is known
    assert not taken(ours, "0")
    ours.learn([])
    assert not taken(ours, "0")
    ours.learn([standing("a", 10.0, written_at=2, rate=2.0)])
    assert taken(ours, "0")


def test_without_any_figures_appends_count_at_a_careful_rate() -> None:
    ours = gate()
    count = 0
    while taken(ours, "7"):
        ours.appended("7")
        count += 1
    assert count == FIRST_REPLIES_PER_SECOND * LIMIT + 1


def test_user_with_messages_waiting_is_refused_before_one_without_if_everything_together_is_too_much() -> None:
    ours = gate()
    ours.learn([standing("a", 7.0, 59.0)])
    assert ours.allowance("0").messages == UNLIMITED
    ours.learn([standing("a", 7.0, 61.0, written_at=2)])
    assert ours.allowance("0") == (8, 7.0)  # a ninth would wait nine turns of 7 s
