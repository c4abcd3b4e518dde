"""What a user's devices see of a message, put together: times, outcomes, and whatever must not be."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from duologue.bench.load.device import Device
from duologue.bench.load.recorder import ModelTimes, Recorder
from duologue.bench.load.user import LoadUser, Tally


class Talk:
    """A user with devices whose sockets are never opened: frames are handed to them as if they had come."""

    def __init__(self, devices: int = 1, model: ModelTimes | None = None) -> None:
        self.tally = Tally()
        self.recorder = Recorder(model)
        self.user = LoadUser("ada", devices, lambda name: name, lambda _: None, self.tally, self.recorder)

    def tell(self, frame: dict[str, Any], device: int | None = None) -> None:
        """Let one device, or all, get a frame."""
        devices: list[Device] = self.user.devices if device is None else [self.user.devices[device]]
        for each in devices:
            each._on_text(msgspec.json.encode(frame))

    def answer(self, content: str = "one two", *, pieces: tuple[str, ...] = ("one ", "two")) -> None:
        """Let all devices see the message's whole way."""
        self.tell({"type": "ack", "id": "ada-1", "message_id": "m"}, 0)
        for seq, piece in enumerate(pieces, 1):
            self.tell(delta(seq, piece))
        self.tell(response(content))


def delta(seq: int, content: str, **more: Any) -> dict[str, Any]:
    return {"type": "delta", "message_id": "m", "attempt": 1, "seq": seq, "content": content, **more}


def response(content: str, attempt: int = 1) -> dict[str, Any]:
    return {"type": "response", "message_id": "m", "attempt": attempt, "content": content, "event_id": "e:1"}


def sent(devices: int = 1, model: ModelTimes | None = None, seconds_ago: float = 0.0) -> Talk:
    talk = Talk(devices, model)
    talk.user.send("Hello", time.perf_counter() - seconds_ago)
    return talk


def test_answered_message_is_clean_and_no_longer_open() -> None:
    talk = sent(devices=2)
    assert talk.tally.open == 1
    talk.answer()
    assert (talk.tally.open, talk.recorder.answered, talk.recorder.acked) == (0, 1, 1)
    assert not talk.recorder.breaches
    assert [talk.recorder.histograms[name].count for name in ("first_token", "ack", "reply")] == [1, 1, 1]


def test_latency_is_measured_from_when_the_message_was_due() -> None:
    talk = sent(seconds_ago=3.0)
    talk.answer()
    assert talk.recorder.late == 1
    assert talk.recorder.histograms["first_token"].percentile(1.0) == pytest.approx(3.0, abs=0.5)


def test_time_of_the_model_itself_is_not_counted() -> None:
    talk = sent(model=ModelTimes(first_token=2.0, whole_reply=2.5), seconds_ago=3.0)
    talk.answer()
    assert talk.recorder.histograms["first_token"].percentile(1.0) == pytest.approx(1.0, abs=0.4)
    assert talk.recorder.histograms["reply"].percentile(1.0) == pytest.approx(0.5, abs=0.4)


def test_reply_that_is_seen_before_the_ack_is_counted_when_that_comes() -> None:
    talk = sent()
    talk.tell(delta(1, "one "))
    talk.tell(response("one two"))
    assert (talk.tally.open, talk.recorder.answered) == (1, 0)
    talk.tell({"type": "ack", "id": "ada-1", "message_id": "m"})
    assert (talk.tally.open, talk.recorder.answered) == (0, 1)
    assert talk.recorder.histograms["first_token"].count == 1


def test_message_stays_open_until_every_device_has_its_reply() -> None:
    talk = sent(devices=2)
    talk.tell({"type": "ack", "id": "ada-1", "message_id": "m"}, 1)
    talk.tell(response("one"), 0)
    assert (talk.tally.open, talk.recorder.answered) == (1, 1)
    talk.tell(response("one"), 1)
    assert talk.tally.open == 0


@pytest.mark.parametrize(
    ("frames", "breach"),
    [
        ([delta(1, "a"), delta(3, "c")], "gaps in a reply's pieces"),
        ([delta(2, "b")], "gaps in a reply's pieces"),
        ([delta(1, "a"), delta(1, "a")], "gaps in a reply's pieces"),
        ([response("a"), response("a")], "doubled outcomes"),
        ([response("a"), delta(1, "a")], "pieces after the end of a reply"),
        ([delta(1, "b"), response("a")], "replies that differ from their pieces"),
        ([{"type": "error", "message_id": "m", "code": "generation_failed"}], "failed replies"),
    ],
)
def test_what_must_not_be_is_counted_by_its_name(frames: list[dict[str, Any]], breach: str) -> None:
    talk = sent()
    talk.tell({"type": "ack", "id": "ada-1", "message_id": "m"})
    for frame in frames:
        talk.tell(frame)
    assert dict(talk.recorder.breaches) == {breach: 1}
    assert talk.recorder.evidence[0].startswith(f"{breach}: m")


def test_devices_that_are_told_different_replies_are_a_breach() -> None:
    talk = sent(devices=2)
    talk.tell(response("one"), 0)
    talk.tell(response("two"), 1)
    assert dict(talk.recorder.breaches) == {"replies that differ between devices": 1}


def test_merged_pieces_and_a_later_attempt_are_no_breach() -> None:
    talk = sent()
    talk.tell(delta(3, "abc", from_seq=1))
    talk.tell({"type": "reset", "message_id": "m", "attempt": 2, "reason": "retry"})
    talk.tell(delta(4, "late", attempt=1))
    talk.tell(delta(1, "x", attempt=2))
    talk.tell({"type": "snapshot", "message_id": "m", "attempt": 2, "seq": 5, "content": "xyz"})
    talk.tell(delta(6, "!", attempt=2))
    talk.tell(response("xyz! and more", attempt=2))
    assert not talk.recorder.breaches


def test_refused_message_is_closed_and_its_refusal_timed() -> None:
    talk = sent()
    talk.tell({"type": "error", "id": "ada-1", "code": "overloaded"})
    assert (talk.tally.open, talk.recorder.refused, dict(talk.recorder.errors)) == (0, 1, {"overloaded": 1})
    assert talk.recorder.histograms["refusal"].count == 1


def test_delay_of_a_stamped_piece_is_measured_for_each_stamp() -> None:
    talk = sent()
    now = time.time()
    talk.tell(delta(2, f"@{now - 0.2:.6f} @{now - 0.1:.6f} ", from_seq=1))
    delays = talk.recorder.histograms["delta_delay"]
    assert delays.count == 2
    assert delays.percentile(1.0) == pytest.approx(0.2, abs=0.1)


def test_window_has_what_came_since_the_last_and_begins_anew() -> None:
    talk = sent()
    talk.answer()
    window = talk.recorder.next_window()
    assert (window.sent, window.answered, len(window.first_token)) == (1, 1, 1)
    assert talk.recorder.next_window().sent == 0


def test_forgotten_messages_are_not_open_any_more() -> None:
    talk = sent()
    talk.user.forget()
    assert talk.tally.open == 0
    talk.tell({"type": "ack", "id": "ada-1", "message_id": "m"})
    assert talk.recorder.acked == 0
