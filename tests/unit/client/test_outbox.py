from __future__ import annotations

import pytest

from duologue.client.outbox import RESEND_SECONDS, Outbox


def make(*, capacity: int = 10, resend_refused: bool = True) -> Outbox:
    return Outbox(capacity=capacity, resend_refused=resend_refused)


def test_frame_is_due_at_once_and_again_after_the_resend_time() -> None:
    outbox = make()
    outbox.add("a", "A", now=100)
    assert outbox.take_due(100) == ["A"]
    assert outbox.take_due(100 + RESEND_SECONDS - 0.1) == []
    assert outbox.next_due() == 100 + RESEND_SECONDS
    assert outbox.take_due(100 + RESEND_SECONDS) == ["A"]


def test_reconnection_makes_every_frame_due_in_its_order() -> None:
    outbox = make()
    for name in "abc":
        outbox.add(name, name.upper(), now=0)
    outbox.take_due(0)
    outbox.reconnected(1)
    assert outbox.take_due(1) == ["A", "B", "C"]


@pytest.mark.parametrize("kind", ["ack", "echo", "error"])
def test_answer_settles_the_frame(kind: str) -> None:
    outbox = make()
    outbox.add("a", "A", now=0)
    assert outbox.answered({"type": kind, "id": "a"}, now=0)
    assert len(outbox) == 0
    assert outbox.next_due() is None


@pytest.mark.parametrize("frame", [{"type": "ack", "id": "b"}, {"type": "ack"}, {"type": "pong", "id": "a"}])
def test_other_frames_settle_nothing(frame: dict[str, str]) -> None:
    outbox = make()
    outbox.add("a", "A", now=0)
    assert not outbox.answered(frame, now=0)
    assert "a" in outbox


def test_temporary_refusal_delays_the_frame() -> None:
    outbox = make()
    outbox.add("a", "A", now=0)
    outbox.take_due(0)
    assert not outbox.answered({"type": "error", "id": "a", "temporary": True, "retry_after": 3}, now=1)
    assert outbox.take_due(3.9) == []
    assert outbox.take_due(4) == ["A"]


def test_temporary_refusal_settles_the_frame_if_resending_is_not_wanted() -> None:
    outbox = make(resend_refused=False)
    outbox.add("a", "A", now=0)
    assert outbox.answered({"type": "error", "id": "a", "temporary": True}, now=0)
    assert "a" not in outbox


def test_frame_that_is_given_up_is_not_sent_again() -> None:
    outbox = make()
    outbox.add("a", "A", now=0)
    outbox.drop("a")
    outbox.drop("unknown")
    assert outbox.take_due(0) == []


def test_full_outbox_takes_no_more() -> None:
    outbox = make(capacity=1)
    outbox.add("a", "A", now=0)
    with pytest.raises(OverflowError):
        outbox.add("b", "B", now=0)


def test_frames_too_large_are_dropped_by_the_limit_or_by_size() -> None:
    outbox = make()
    for name, wire in (("a", "1"), ("b", "22"), ("c", "ü2")):
        outbox.add(name, wire, now=0)
    assert outbox.drop_larger(2) == ["c"]
    assert outbox.drop_larger(None) == ["b"]
    assert "a" in outbox
